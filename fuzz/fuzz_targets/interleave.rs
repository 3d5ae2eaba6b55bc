#![cfg_attr(fuzzing, no_main)]
//! See `migwire_fuzz::interleave`.
migwire_fuzz::target!(migwire_fuzz::interleave::run);
