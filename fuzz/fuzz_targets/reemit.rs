#![cfg_attr(fuzzing, no_main)]
//! See `migwire_fuzz::reemit`.
migwire_fuzz::target!(migwire_fuzz::reemit::run);
