#![cfg_attr(fuzzing, no_main)]
//! See `migwire_fuzz::codec`.
migwire_fuzz::target!(migwire_fuzz::codec::run);
