//! Requests to MinIO's administration: that there is a user for jobs and notebooks who may do everything in one bucket
//! and nothing else. MinIO's root keys stay with labd.
//!
//! Pure: requests as values. They are signed like those of S3, and what carries a secret is encrypted with the root's
//! password, as MinIO's own client does it.

use aes_gcm::{
    Aes256Gcm, KeyInit as _, Nonce,
    aead::{Aead as _, Payload},
};
use hmac::{Hmac, Mac as _};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::{
    secret::{Secret, hex},
    text::path_segment,
    time::Timestamp,
};

/// Name of the policy that is the jobs' user's.
const POLICY: &str = "labd-jobs";

/// Pair of keys.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Keys {
    /// Access key: the user's name.
    pub access: Secret,
    /// Secret key: its password.
    pub secret: Secret,
}

/// Request to MinIO's administration; all are idempotent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AdminPut {
    /// Path and query.
    pub(crate) path: String,
    /// Body.
    pub(crate) body: Vec<u8>,
}

/// Requests that make a user for one bucket, in this order. `noise` is 40 random bytes.
pub(crate) fn user_for_bucket(root: &Keys, user: &Keys, bucket: &str, noise: &[u8; 40]) -> [AdminPut; 3] {
    let name = path_segment(user.access.expose());
    let account = json!({"secretKey": user.secret.expose(), "status": "enabled"}).to_string();
    [
        AdminPut {
            path: format!("/minio/admin/v3/add-canned-policy?name={POLICY}"),
            body: policy(bucket).to_string().into_bytes(),
        },
        AdminPut {
            path: format!("/minio/admin/v3/add-user?accessKey={name}"),
            body: encrypt(root.secret.expose(), account.as_bytes(), noise),
        },
        AdminPut {
            path: format!(
                "/minio/admin/v3/set-user-or-group-policy?isGroup=false&policyName={POLICY}&userOrGroup={name}"
            ),
            body: Vec::new(),
        },
    ]
}

/// Policy that allows everything in the bucket, but not to open it to people without keys, to send it elsewhere, or to
/// remove it whole.
fn policy(bucket: &str) -> serde_json::Value {
    let resources = [format!("arn:aws:s3:::{bucket}"), format!("arn:aws:s3:::{bucket}/*")];
    json!({
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": ["s3:*"], "Resource": resources},
            {
                "Effect": "Deny",
                "Action": [
                    "s3:DeleteBucket", "s3:ForceDeleteBucket", "s3:PutBucketPolicy", "s3:DeleteBucketPolicy",
                    "s3:PutBucketNotification", "s3:PutReplicationConfiguration"
                ],
                "Resource": resources,
            },
        ],
    })
}

/// Headers that sign a PUT as `keys` (AWS Signature Version 4, in the header: MinIO's administration takes no other).
pub(crate) fn signed(put: &AdminPut, host: &str, keys: &Keys, now: Timestamp) -> [(&'static str, String); 3] {
    const SCOPE: &str = "us-east-1/s3/aws4_request";
    let date = now.basic();
    let day = date.get(..8).unwrap_or_default();
    let hash = hex(&Sha256::digest(&put.body));
    let (path, query) = put.path.split_once('?').unwrap_or((&put.path, ""));
    let canonical = format!(
        "PUT\n{path}\n{}\nhost:{host}\nx-amz-content-sha256:{hash}\nx-amz-date:{date}\n\n\
         host;x-amz-content-sha256;x-amz-date\n{hash}",
        canonical_query(query)
    );
    let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{day}/{SCOPE}\n{}", hex(&Sha256::digest(canonical.as_bytes())));
    let mut key = mac(format!("AWS4{}", keys.secret.expose()).as_bytes(), day.as_bytes());
    for part in SCOPE.split('/') {
        key = mac(&key, part.as_bytes());
    }
    let signature = hex(&mac(&key, to_sign.as_bytes()));
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={}/{day}/{SCOPE}, SignedHeaders=host;x-amz-content-sha256;x-amz-date, \
         Signature={signature}",
        keys.access.expose()
    );
    [("authorization", authorization), ("x-amz-content-sha256", hash), ("x-amz-date", date)]
}

/// The query with its parameters in order.
fn canonical_query(query: &str) -> String {
    let mut pairs: Vec<&str> = query.split('&').filter(|pair| !pair.is_empty()).collect();
    pairs.sort_unstable();
    pairs.join("&")
}

fn mac(key: &[u8], data: &[u8]) -> Vec<u8> {
    // Keys of any length will do, so this does not fail.
    let Ok(mut mac) = <Hmac<Sha256> as hmac::Mac>::new_from_slice(key) else { return Vec::new() };
    mac.update(data);
    mac.finalize().into_bytes().to_vec()
}

/// Encrypts a short body as MinIO's administration reads it: salt, a byte that names the method, nonce, and one sealed piece.
/// The key is derived by PBKDF2, which needs no 64 MiB of memory as the other method does; the password is random anyway.
fn encrypt(password: &str, data: &[u8], noise: &[u8; 40]) -> Vec<u8> {
    const PBKDF2_AES_GCM: u8 = 2;
    const ROUNDS: u32 = 8_192;
    /// First byte of what is sealed along with the last piece.
    const LAST: u8 = 0x80;
    let (salt, nonce) = noise.split_at(32);
    let mut key = [0; 32];
    pbkdf2::pbkdf2_hmac::<Sha256>(password.as_bytes(), salt, ROUNDS, &mut key);
    let cipher = Aes256Gcm::new(&key.into());
    // The nonce's end counts the pieces. Piece 0 is empty: its tag is sealed along with all others.
    let seal = |piece: u8, msg: &[u8], aad: &[u8]| {
        let mut whole = [0; 12];
        whole[..8].copy_from_slice(nonce);
        whole[8] = piece;
        // Fails for what is longer than 64 GiB only.
        cipher.encrypt(Nonce::from_slice(&whole), Payload { msg, aad }).unwrap_or_default()
    };
    let mut along = vec![LAST];
    along.extend(seal(0, &[], &[]));
    let mut all = salt.to_vec();
    all.push(PBKDF2_AES_GCM);
    all.extend_from_slice(nonce);
    all.extend(seal(1, data, &along));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(access: &str, secret: &str) -> Keys {
        Keys { access: Secret::new(access), secret: Secret::new(secret) }
    }

    #[test]
    fn the_secret_of_the_user_travels_encrypted() {
        let all = user_for_bucket(&keys("root", "r00t-secret"), &keys("jobs/1", "j0bs-secret"), "ray", &[7; 40]);
        for put in &all {
            let text = String::from_utf8_lossy(&put.body).into_owned() + &put.path;
            assert!(!text.contains("j0bs-secret") && !text.contains("r00t-secret"), "{text}");
        }
        assert!(all[1].path.ends_with("accessKey=jobs%2F1"), "{}", all[1].path);
        // As another implementation seals the same.
        assert_eq!(hex(&Sha256::digest(&all[1].body))[..16], *"01f3ac3a1bc29325");
    }

    #[test]
    fn the_user_has_the_bucket_and_cannot_give_it_away() {
        let policy = policy("ray");
        assert_eq!(policy["Statement"][0]["Resource"], json!(["arn:aws:s3:::ray", "arn:aws:s3:::ray/*"]));
        let denied = policy["Statement"][1]["Action"].as_array().expect("a list");
        assert!(denied.contains(&json!("s3:PutBucketPolicy")));
    }

    #[test]
    fn a_request_is_signed_as_s3_asks_for_it() {
        let put = AdminPut { path: "/minio/admin/v3/x?b=2&a=1".into(), body: b"{}".to_vec() };
        let now = Timestamp::parse("2026-11-28T00:51:46.123Z").expect("a time");
        let [authorization, hash, date] = signed(&put, "127.0.0.1:9000", &keys("AKIA", "s3cret"), now);
        assert_eq!(date.1, "20261128T005146Z");
        assert_eq!(hash.1, "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a");
        assert!(authorization.1.contains("Credential=AKIA/20261128/us-east-1/s3/aws4_request"));
        // As another implementation signs the same.
        assert!(
            authorization.1.ends_with("Signature=80ca87fb5034233fb25e8fe049f5315ace19b1a93357586e3bc6dfa664316756"),
            "{}",
            authorization.1
        );
    }
}
