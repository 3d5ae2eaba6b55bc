#![cfg_attr(fuzzing, no_main)]
//! See `migwire_fuzz::convert`.
migwire_fuzz::target!(migwire_fuzz::convert::run);
