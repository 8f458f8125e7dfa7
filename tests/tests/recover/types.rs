//! Each type of map, restored.
