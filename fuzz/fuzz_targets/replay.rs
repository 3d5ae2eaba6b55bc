#![cfg_attr(fuzzing, no_main)]
//! See `migwire_fuzz::replay`.
migwire_fuzz::target!(migwire_fuzz::replay::run);
