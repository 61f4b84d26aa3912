//! Generates the API's code from the protos, without a protoc.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    let (own, imports) = ("../../proto", "../../third_party/proto");
    println!("cargo:rerun-if-changed={own}");
    println!("cargo:rerun-if-changed={imports}");
    if !fs::exists(imports)? {
        return Err("no third_party/proto: run `make third_party/proto` in the root of the repository".into());
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(format!("{own}/jelou/facade/v1"))? {
        files.push(entry?.path());
    }
    let set = protox::compile(files, [own, imports])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("facade.binpb"), set.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_server(false)
        .build_transport(false)
        .codec_path("crate::Codec")
        .extern_path(".google.rpc", "::tonic_types::pb")
        .compile_fds(set)?;
    Ok(())
}
