use std::{collections::HashMap, sync::LazyLock, time::Duration};

use serde::{Deserialize, Deserializer, de::Error};
use tonic::Code;
use uuid::Uuid;

/// What the published service config says of a method. gRPC for Rust reads none, so that [`crate::Connection`] applies it.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// Deadline of the whole call with all attempts; none for a stream.
    #[serde(default, deserialize_with = "optional_seconds")]
    pub timeout: Option<Duration>,
    pub retry_policy: Option<Retry>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    pub max_attempts: u32,
    #[serde(deserialize_with = "seconds")]
    initial_backoff: Duration,
    #[serde(deserialize_with = "seconds")]
    max_backoff: Duration,
    backoff_multiplier: f64,
    retryable_status_codes: Vec<String>,
}

impl Retry {
    pub fn repeats(&self, code: Code) -> bool {
        self.retryable_status_codes.iter().any(|name| *name == crate::failure::name(code))
    }

    /// How long to wait after so many attempts: a fifth more or less than the rule, so that clients do not come back together.
    pub fn backoff(&self, attempts: u32) -> Duration {
        let steps = i32::try_from(attempts.saturating_sub(1)).unwrap_or(i32::MAX);
        let rule = self.initial_backoff.as_secs_f64() * self.backoff_multiplier.powi(steps);
        let random = f64::from(Uuid::new_v4().as_bytes()[0]) / 255.0;
        Duration::from_secs_f64(rule.min(self.max_backoff.as_secs_f64()) * (0.8 + 0.4 * random))
    }
}

/// Finds a method's policy by its path, such as `/jelou.facade.v1.SendService/GetSend`.
pub fn of(path: &str) -> Policy {
    static POLICIES: LazyLock<HashMap<String, Policy>> =
        LazyLock::new(|| parse(include_str!("../../service_config.json")).expect("the published config is valid"));
    POLICIES.get(path).cloned().unwrap_or_default()
}

fn parse(text: &str) -> serde_json::Result<HashMap<String, Policy>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Config {
        method_config: Vec<Methods>,
    }
    #[derive(Deserialize)]
    struct Methods {
        name: Vec<Name>,
        #[serde(flatten)]
        policy: Policy,
    }
    #[derive(Deserialize)]
    struct Name {
        service: String,
        method: String,
    }
    let mut policies = HashMap::new();
    for methods in serde_json::from_str::<Config>(text)?.method_config {
        for name in methods.name {
            policies.insert(format!("/{}/{}", name.service, name.method), methods.policy.clone());
        }
    }
    Ok(policies)
}

/// Reads a duration as protobuf's JSON writes it, such as "0.3s".
fn seconds<'de, D: Deserializer<'de>>(value: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(value)?;
    let number = text.strip_suffix('s').and_then(|n| n.parse().ok());
    number.and_then(|n| Duration::try_from_secs_f64(n).ok()).ok_or_else(|| D::Error::custom(format!("{text} is no duration")))
}

fn optional_seconds<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Duration>, D::Error> {
    seconds(value).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_as_published() {
        let send = of("/jelou.facade.v1.MessageService/SendMessage");
        assert_eq!(send.timeout, Some(Duration::from_secs(30)));
        let retry = send.retry_policy.expect("sends are repeated");
        assert_eq!(retry.max_attempts, 4);
        assert!(retry.repeats(Code::Unavailable) && !retry.repeats(Code::Unknown) && !retry.repeats(Code::DeadlineExceeded));
        for (attempts, rule) in [(1, 0.3), (2, 0.9), (3, 2.7), (4, 5.0), (u32::MAX, 5.0)] {
            let wait = retry.backoff(attempts).as_secs_f64();
            assert!((0.79 * rule..=1.21 * rule).contains(&wait), "{wait} s after {attempts}");
        }
        let cancel = of("/jelou.facade.v1.SendService/CancelSend");
        assert!(cancel.timeout.is_some() && cancel.retry_policy.is_none());
        let stream = of("/jelou.facade.v1.BatchService/StreamBatch");
        assert!(stream.timeout.is_none() && stream.retry_policy.is_none());
    }
}
