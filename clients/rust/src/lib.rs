//! Calls jelou-facade: the generated clients of [`v1`] over a [`Connection`], which gives every send a `request_id`, has the
//! published retries and deadlines, and errors that [`Failure`] reads as the API means them.

use tonic::transport::Endpoint;

mod codec;
mod connection;
mod failure;
mod policy;

pub use codec::Codec;
pub use connection::Connection;
pub use failure::Failure;

/// The API's messages and clients, generated from the protos.
#[allow(clippy::large_enum_variant, clippy::doc_lazy_continuation)] // prost's choice
pub mod v1 {
    tonic::include_proto!("jelou.facade.v1");
}

/// The protos and all they import, as an encoded `google.protobuf.FileDescriptorSet`, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/facade.binpb"));

/// Makes a connection for the generated clients. It opens at the first call, and again whenever it broke. What the endpoint says
/// about TLS holds; a deadline is better given with `Request::set_timeout` or left to the published ones.
pub fn connect(endpoint: Endpoint) -> Connection {
    Connection::new(endpoint.connect_lazy())
}
