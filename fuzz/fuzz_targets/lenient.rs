#![cfg_attr(fuzzing, no_main)]
//! See `migwire_fuzz::lenient`.
migwire_fuzz::target!(migwire_fuzz::lenient::run);
