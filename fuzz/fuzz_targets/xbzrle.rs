#![cfg_attr(fuzzing, no_main)]
//! See `migwire_fuzz::xbzrle`.
migwire_fuzz::target!(migwire_fuzz::xbzrle::run);
