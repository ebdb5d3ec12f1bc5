//! `GET /healthz`: labd itself answers. How the lab is doing is the snapshot's matter.

/// Always `ok`.
pub(super) async fn get() -> &'static str {
    "ok\n"
}

#[cfg(test)]
mod tests {
    use crate::http::{
        public_router, scrape_router,
        testing::{Lab, ask, status_and_text},
    };

    #[tokio::test]
    async fn it_answers() {
        let lab = Lab::new();
        for router in [public_router(lab.state.clone()), scrape_router(lab.state.clone())] {
            assert_eq!(
                status_and_text(ask(router, "GET", "/healthz").await).await,
                (200.try_into().expect("a status"), "ok\n".into())
            );
        }
    }
}
