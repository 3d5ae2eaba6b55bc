#![cfg_attr(fuzzing, no_main)]
//! See `migwire_fuzz::cut_anywhere`.
migwire_fuzz::target!(migwire_fuzz::cut_anywhere::run);
