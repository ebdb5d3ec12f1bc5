//! Requests to an S3 store: what is in the bucket, and what is in one small object.
//!
//! A signed URL is a credential: it is in no error and no log.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::Request;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rusty_s3::{Bucket, Credentials, S3Action as _, UrlStyle, actions::ListObjectsV2};
use url::Url;

use super::{
    Store,
    listing::{self, Object, Record},
};
use crate::time::Timestamp;

/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Time for which a signature is valid.
const VALID: Duration = Duration::from_mins(1);
/// Number of objects in a page that may be cut, at least: S3's own, and MinIO's.
const FULL: usize = 1_000;
/// Largest page read: 1,000 keys of 1 KiB, each byte of them escaped, and what is around them.
const PAGE: usize = 8 << 20;
/// Largest record read: tens of thousands of checkpoints.
const RECORD: usize = 16 << 20;

/// Client of the store.
pub(super) struct S3 {
    client: Client<HttpConnector, Empty<Bytes>>,
    bucket: Bucket,
    credentials: Credentials,
}

/// Part of a listing.
pub(super) struct Page {
    pub(super) objects: Vec<Object>,
    /// Key after which the next part begins; `None` where this is the last one.
    pub(super) next: Option<String>,
}

/// Key after which a listing goes on. A full page is not the end, whatever the store says: a MinIO that stands still ends a
/// listing there and calls it whole.
fn goes_on(objects: &[Object], is_cut: bool) -> Option<String> {
    objects.last().filter(|_| is_cut || objects.len() >= FULL).map(|object| object.key.clone())
}

impl S3 {
    /// Client; fails for a store that labd cannot speak to, in one line.
    pub(super) fn new(store: &Store) -> Result<Self, String> {
        if store.endpoint.scheme() != "http" {
            return Err(
                "labd does not list checkpoints in an https store (it does not speak TLS); training uses them all the \
                        same; see them with the store's own tools"
                    .to_owned(),
            );
        }
        let bucket = Bucket::new(store.endpoint.clone(), UrlStyle::Path, store.bucket.clone(), store.region.clone());
        let bucket = bucket.map_err(|_| "the S3 store has no valid address; correct `s3.endpoint`".to_owned())?;
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(1).build_http::<Empty<Bytes>>();
        Ok(Self { client, bucket, credentials: Credentials::new(store.access_key.expose(), store.secret_key.expose()) })
    }

    /// Objects of the bucket after the key `after`, in the order of their keys.
    pub(super) async fn page(&self, after: Option<String>) -> Result<Page, String> {
        let mut list = self.bucket.list_objects_v2(Some(&self.credentials));
        if let Some(after) = after {
            list.with_start_after(after);
        }
        let body = self.get(list.sign(VALID), PAGE).await?;
        let no_list = "the S3 store's answer is not a list of objects; is `s3.endpoint` its address?";
        let text = std::str::from_utf8(&body).map_err(|_| no_list.to_owned())?;
        let page = ListObjectsV2::parse_response(text).map_err(|_| no_list.to_owned())?;
        let objects = page.contents.into_iter().map(|o| Object {
            key: o.key,
            bytes: o.size.unwrap_or(0),
            at: o.last_modified.and_then(|at| Timestamp::parse(&at)).unwrap_or_default(),
            etag: o.etag.unwrap_or_default(),
        });
        let objects: Vec<Object> = objects.collect();
        let next = goes_on(&objects, page.next_continuation_token.is_some());
        Ok(Page { objects, next })
    }

    /// Ray's own record of the run at `prefix`; `None` when it cannot be read.
    pub(super) async fn record(&self, prefix: &str) -> Option<Record> {
        let key = format!("{prefix}/{}", listing::RECORD);
        let url = self.bucket.get_object(Some(&self.credentials), &key).sign(VALID);
        listing::record(&self.get(url, RECORD).await.ok()?)
    }

    async fn get(&self, url: Url, largest: usize) -> Result<Bytes, String> {
        let away = || "the S3 store does not answer".to_owned();
        let request = Request::get(url.as_str())
            .body(Empty::new())
            .map_err(|_| "the S3 store has no valid address".to_owned())?;
        let work = async {
            let answer = self.client.request(request).await.map_err(|_| away())?;
            match answer.status().as_u16() {
                200 => {}
                403 => return Err("the S3 store refuses the credentials".to_owned()),
                404 => return Err(format!("the S3 store has no bucket `{}`", self.bucket.name())),
                status => return Err(format!("the S3 store answers with HTTP status {status}")),
            }
            let body = Limited::new(answer.into_body(), largest).collect().await;
            Ok(body.map_err(|_| "the S3 store's answer broke off or is too long".to_owned())?.to_bytes())
        };
        tokio::time::timeout(ANSWER, work).await.map_err(|_| away())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_page_with_room_that_is_called_the_last_is_the_end() {
        let object =
            |n: usize| Object { key: format!("run/{n:04}"), bytes: 1, at: Timestamp::default(), etag: String::new() };
        let objects: Vec<Object> = (0..FULL).map(object).collect();
        assert_eq!(goes_on(&objects[1..], false), None);
        assert_eq!(goes_on(&objects[..2], true).as_deref(), Some("run/0001"));
        assert_eq!(goes_on(&objects, false).as_deref(), Some("run/0999"));
        assert_eq!(goes_on(&[], true), None);
    }
}
