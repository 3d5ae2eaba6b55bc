#![cfg_attr(fuzzing, no_main)]
//! See `migwire_fuzz::preempt`.
migwire_fuzz::target!(migwire_fuzz::preempt::run);
