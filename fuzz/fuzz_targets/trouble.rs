#![cfg_attr(fuzzing, no_main)]
//! See `migwire_fuzz::trouble`.
migwire_fuzz::target!(migwire_fuzz::trouble::run);
