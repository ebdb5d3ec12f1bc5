//! Golden files of what stands on machines and what scripts read, as it was released: `tests/data/golden`. The tests
//! that use them belong to the types; each fails when a machine that upgrades would lose what it stored, or a script
//! what it reads.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// Values of a golden file that holds an array.
pub(crate) fn array(text: &str) -> Vec<Value> {
    serde_json::from_str(text).expect("a JSON array")
}

/// Fails unless this type reads the value and writes it back as it was.
pub(crate) fn holds<T: Serialize + DeserializeOwned>(value: &Value) {
    let read: T =
        serde_json::from_value(value.clone()).unwrap_or_else(|e| panic!("cannot be read any more: {e}: {value}"));
    assert_eq!(serde_json::to_value(read).expect("plain values"), *value);
}
