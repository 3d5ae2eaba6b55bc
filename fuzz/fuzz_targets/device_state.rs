#![cfg_attr(fuzzing, no_main)]
//! See `migwire_fuzz::device_state`.
migwire_fuzz::target!(migwire_fuzz::device_state::run);
