#![cfg_attr(fuzzing, no_main)]
//! See `migwire_fuzz::multifd`.
migwire_fuzz::target!(migwire_fuzz::multifd::run);
