#![cfg_attr(fuzzing, no_main)]
//! See `migwire_fuzz::return_path`.
migwire_fuzz::target!(migwire_fuzz::return_path::run);
