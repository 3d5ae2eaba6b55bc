#![cfg_attr(fuzzing, no_main)]
//! See `migwire_fuzz::import`.
migwire_fuzz::target!(migwire_fuzz::import::run);
