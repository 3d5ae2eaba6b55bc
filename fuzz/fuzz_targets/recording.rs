#![cfg_attr(fuzzing, no_main)]
//! See `migwire_fuzz::recording`.
migwire_fuzz::target!(migwire_fuzz::recording::run);
