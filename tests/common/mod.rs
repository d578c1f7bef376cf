//! What the tests of the library share: goldens, and runs of the forward pass against them.

// Every test file uses a part of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use l4::llama4::Llama4;
use l4::model::forward::Forward;
use l4::model::weights;
use safetensors::SafeTensors;

pub(crate) fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

/// A golden file's tensors.
pub(crate) struct Golden(Vec<u8>);

impl Golden {
    pub(crate) fn open(name: &str) -> Self {
        Self(std::fs::read(testdata(name).join("golden.safetensors")).unwrap())
    }

    pub(crate) fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).unwrap()
    }

    pub(crate) fn floats(&self, name: &str) -> Option<Vec<f32>> {
        let file = self.file();
        let tensor = file.tensor(name).ok()?;
        Some(tensor.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
    }

    pub(crate) fn tokens(&self) -> Vec<u32> {
        let file = self.file();
        let tensor = file.tensor("text.input_ids").unwrap();
        tensor.data().as_chunks::<8>().0.iter().map(|&bytes| i64::from_le_bytes(bytes) as u32).collect()
    }
}

/// Largest difference over the largest magnitude.
pub(crate) fn relative_error(is: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(is.len(), wanted.len());
    assert!(is.iter().all(|x| x.is_finite()));
    let largest = wanted.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
    is.iter().zip(wanted).fold(0.0_f32, |max, (a, b)| max.max((a - b).abs())) / largest
}

/// Logits `[tokens, vocab]` of a residual stream.
pub(crate) fn logits(forward: &Forward<'_>, hidden: &[f32], tokens: usize) -> Vec<f32> {
    let normed = forward.final_norm(hidden);
    let vocab = forward.head().matrix().0;
    let mut logits = vec![0.0; tokens * vocab];
    for outs in weights::blocks(forward.head()) {
        let block = weights::apply_outputs(forward.model(), forward.head(), &outs, &normed);
        for (row, block) in logits.chunks_exact_mut(vocab).zip(block.chunks_exact(outs.len())) {
            row[outs.clone()].copy_from_slice(block);
        }
    }
    logits
}

/// Runs the tokens of the golden `name` through `model` and asserts that residual stream, router and logits are
/// relatively no further off than `bound`. Gives the logits.
#[track_caller]
pub(crate) fn check(model: &Llama4, name: &str, router_layers: usize, bound: f32) -> Vec<f32> {
    let golden = Golden::open(name);
    let tokens = golden.tokens();
    let forward = Forward::new(model, &[tokens.len()]).unwrap();
    let mut hidden = forward.embed(&tokens).unwrap();
    let mut routers = 0;
    for layer in 0..forward.layers() {
        let router = forward.layer(layer, &mut hidden);
        if let Some(wanted) = golden.floats(&format!("text.router_logits.{layer}")) {
            let error = relative_error(&router.expect("the golden says that the layer has a router"), &wanted);
            assert!(error < bound, "{name}: router of layer {layer} is off by {error:e}");
            routers += 1;
        } else {
            assert!(router.is_none(), "{name}: layer {layer} should have no router");
        }
        let wanted = golden.floats(&format!("text.hidden.{layer}")).unwrap();
        let error = relative_error(&hidden, &wanted);
        assert!(error < bound, "{name}: residual stream after layer {layer} is off by {error:e}");
    }
    assert_eq!(routers, router_layers);
    let logits = logits(&forward, &hidden, tokens.len());
    let error = relative_error(&logits, &golden.floats("text.logits").unwrap());
    assert!(error < bound, "{name}: logits are off by {error:e}");
    println!("{name}: logits are off by {error:e}");
    logits
}
