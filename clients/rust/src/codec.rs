use std::{any::Any, marker::PhantomData};

use prost::Message;
use tonic::{
    Status,
    codec::{EncodeBuf, Encoder},
};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};
use uuid::Uuid;

use crate::v1::{self, stream_batch_request as stream};

/// Encodes the API's messages. It gives what has none a `request_id` of its own; a [`crate::Connection`] repeats what is encoded,
/// so that all attempts of a call have one id.
pub struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Message + 'static,
    U: Message + Default + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = Identifying<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        Identifying(ProstEncoder::default())
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::default().decoder()
    }
}

pub struct Identifying<T>(ProstEncoder<T>);

impl<T: Message + 'static> Encoder for Identifying<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, mut item: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        if let Some(id) = request_id(&mut item).filter(|id| id.is_empty()) {
            *id = Uuid::new_v4().to_string();
        }
        self.0.encode(item, buffer)
    }
}

/// Where a request has its id. Dry runs take none.
fn request_id(request: &mut dyn Any) -> Option<&mut String> {
    if request.is::<v1::SendMessageRequest>() {
        let r = request.downcast_mut::<v1::SendMessageRequest>()?;
        (!r.validate_only).then_some(&mut r.request_id)
    } else if request.is::<v1::SendNotificationRequest>() {
        let r = request.downcast_mut::<v1::SendNotificationRequest>()?;
        (!r.validate_only).then_some(&mut r.request_id)
    } else if request.is::<v1::CreateBatchRequest>() {
        let r = request.downcast_mut::<v1::CreateBatchRequest>()?;
        let spec = r.spec.as_mut().filter(|_| !r.validate_only)?;
        Some(&mut spec.request_id)
    } else if request.is::<v1::ReplayBatchRequest>() {
        let r = request.downcast_mut::<v1::ReplayBatchRequest>()?;
        Some(&mut r.request_id)
    } else {
        match request.downcast_mut::<v1::StreamBatchRequest>()?.request.as_mut()? {
            stream::Request::Open(stream::Open { batch: Some(stream::open::Batch::Spec(spec)), .. }) => Some(&mut spec.request_id),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sends_have_ids_and_dry_runs_none() {
        let spec = || Some(v1::BatchSpec::default());
        let open = |batch| v1::StreamBatchRequest {
            request: Some(stream::Request::Open(stream::Open { batch: Some(batch), ..Default::default() })),
        };
        let cases: Vec<(Box<dyn Any>, bool)> = vec![
            (Box::new(v1::SendMessageRequest::default()), true),
            (Box::new(v1::SendMessageRequest { validate_only: true, ..Default::default() }), false),
            (Box::new(v1::SendNotificationRequest::default()), true),
            (Box::new(v1::SendNotificationRequest { validate_only: true, ..Default::default() }), false),
            (Box::new(v1::CreateBatchRequest { spec: spec(), ..Default::default() }), true),
            (Box::new(v1::CreateBatchRequest { spec: spec(), validate_only: true, ..Default::default() }), false),
            (Box::new(v1::ReplayBatchRequest::default()), true),
            (Box::new(open(stream::open::Batch::Spec(Default::default()))), true),
            (Box::new(open(stream::open::Batch::BatchId("b".into()))), false),
            (Box::new(v1::GetSendRequest::default()), false),
        ];
        for (n, (mut request, wanted)) in cases.into_iter().enumerate() {
            assert_eq!(request_id(request.as_mut()).is_some(), wanted, "case {n}");
        }
    }
}
