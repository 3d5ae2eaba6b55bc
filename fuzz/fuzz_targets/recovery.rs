#![cfg_attr(fuzzing, no_main)]
//! See `migwire_fuzz::recovery`.
migwire_fuzz::target!(migwire_fuzz::recovery::run);
