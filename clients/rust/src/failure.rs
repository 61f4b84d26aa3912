use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorInfo, FieldViolation, StatusExt};

/// What an error of the API says beside its message.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The gRPC code's name, such as `NOT_FOUND`.
    pub code: &'static str,
    /// A name of [`crate::v1::ErrorReason`]; empty for an error of another origin.
    pub reason: String,
    /// Who says so: `api.jelou.ai` or `jelou-facade`.
    pub domain: String,
    /// What the error names, such as `send_id`.
    pub metadata: HashMap<String, String>,
    /// What is wrong with the request.
    pub fields: Vec<FieldViolation>,
    /// How long to wait before the call is repeated with the same request_id. None: a retry does not help.
    pub retry_delay: Option<Duration>,
}

impl From<&Status> for Failure {
    fn from(status: &Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info().cloned().unwrap_or_else(|| ErrorInfo::new("", "", HashMap::new()));
        Self {
            code: name(status.code()),
            reason: info.reason,
            domain: info.domain,
            metadata: info.metadata,
            fields: details.bad_request().map(|b| b.field_violations.clone()).unwrap_or_default(),
            retry_delay: details.retry_info().and_then(|r| r.retry_delay),
        }
    }
}

/// A code's name as all other languages write it.
pub fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
