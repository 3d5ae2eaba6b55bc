#![cfg_attr(fuzzing, no_main)]
//! See `migwire_fuzz::whole_parse`.
migwire_fuzz::target!(migwire_fuzz::whole_parse::run);
