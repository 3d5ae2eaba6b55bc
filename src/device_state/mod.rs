//! Device state that is moved as such: VFIO.
