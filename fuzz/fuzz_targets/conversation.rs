#![cfg_attr(fuzzing, no_main)]
//! See `migwire_fuzz::conversation`.
migwire_fuzz::target!(migwire_fuzz::conversation::run);
