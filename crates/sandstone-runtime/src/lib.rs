//! Part of Sandstone.
