//! Tests of opening checkpoints.
