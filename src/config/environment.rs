//! Names that `[ray] env` may not set, since labd sets them itself or since they would break a container. Pure.

/// Names that labd sets in Ray's containers or JupyterLab, each with the setting to use in its place where there is one.
/// A test of the plan compares the list with the containers.
const OWN: &[(&str, &str)] = &[
    ("AWS_ACCESS_KEY_ID", "`[s3]`"),
    ("AWS_DEFAULT_REGION", "`s3.region`"),
    ("AWS_ENDPOINT_URL", "`s3.endpoint`"),
    ("AWS_SECRET_ACCESS_KEY", "`[s3]`"),
    ("HTTPS_PROXY", "`images.build.https_proxy`"),
    ("HTTP_PROXY", "`images.build.http_proxy`"),
    ("JUPYTER_TOKEN", ""),
    ("NO_PROXY", "`images.build.no_proxy`"),
    ("PATH", ""),
    ("PIP_CERT", "`images.build.ca_bundle`"),
    ("PIP_INDEX_URL", "`images.build.pip_index_url`"),
    ("RAY_ADDRESS", ""),
    ("RAY_API_SERVER_ADDRESS", ""),
    ("RAY_AUTH_MODE", ""),
    ("RAY_AUTH_TOKEN", ""),
    ("RAY_AUTH_TOKEN_PATH", ""),
    ("RAY_DEDUP_LOGS", ""),
    ("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", ""),
    ("RAY_GRAFANA_HOST", ""),
    ("RAY_GRAFANA_IFRAME_HOST", ""),
    ("RAY_JOB_CONFIG_JSON_ENV_VAR", ""),
    ("RAY_JOB_START_TIMEOUT_SECONDS", ""),
    ("RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR", ""),
    ("RAY_PROMETHEUS_HOST", ""),
    ("RAY_RUNTIME_ENV_PLUGINS", ""),
    ("RAY_RUNTIME_ENV_PY_MODULES_CACHE_SIZE_GB", ""),
    ("RAY_RUNTIME_ENV_WORKING_DIR_CACHE_SIZE_GB", ""),
    ("RAY_START_HOOK", ""),
    ("RAY_TMPDIR", ""),
    ("RAY_TRAIN_ENABLE_PRINT_PATCH", ""),
    ("RAY_TRAIN_ENABLE_STATE_TRACKING", ""),
    ("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", ""),
    ("RAY_USAGE_STATS_ENABLED", ""),
    ("RAY_WORKER_OOM_SCORE_ADJUSTMENT", ""),
    ("RAY_agent_manager_retry_interval_ms", ""),
    ("RAY_gcs_rpc_server_reconnect_timeout_s", ""),
    ("RAY_gcs_storage", "`ray.persist`"),
    ("RAY_gcs_storage_path", "`ray.persist`"),
    ("RAY_grpc_keepalive_timeout_ms", ""),
    ("RAY_raylet_client_connect_timeout_milliseconds", ""),
    ("RAY_raylet_client_num_connect_attempts", ""),
    ("RAY_worker_oom_score_adjustment", ""),
    ("REQUESTS_CA_BUNDLE", "`images.build.ca_bundle`"),
    ("SSL_CERT_FILE", "`images.build.ca_bundle`"),
    ("UV_DEFAULT_INDEX", "`images.build.pip_index_url`"),
    ("VIRTUAL_ENV", ""),
    ("http_proxy", "`images.build.http_proxy`"),
    ("https_proxy", "`images.build.https_proxy`"),
    ("no_proxy", "`images.build.no_proxy`"),
    ("CUDA_VISIBLE_DEVICES", ""),
    ("GPU_DEVICE_ORDINAL", ""),
    ("HIP_VISIBLE_DEVICES", ""),
    ("NVIDIA_VISIBLE_DEVICES", ""),
    ("ROCR_VISIBLE_DEVICES", ""),
    ("ZE_AFFINITY_MASK", ""),
];

/// Checks one entry. Fails with what is wrong and what would be right; the value is never repeated.
pub fn check(name: &str, value: &str) -> Result<(), String> {
    let mut chars = name.chars();
    let begins = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    if !begins || !chars.all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err(format!("{name:?} cannot name a variable; use letters, digits and `_`, such as `FOOD11_DATA_DIR`"));
    }
    if name.starts_with("LABD_") {
        return Err(format!("`{name}`: names that begin with `LABD_` are labd's own; use another"));
    }
    if let Some((_, setting)) = OWN.iter().find(|(own, _)| *own == name) {
        let instead = match *setting {
            "" => "remove it; one job can have its own in its `runtime_env`".to_owned(),
            setting => format!("use {setting} instead"),
        };
        return Err(format!("`{name}` is set by labd itself; {instead}"));
    }
    if value.contains('\0') || value.len() > 64 << 10 {
        return Err(format!("the value of `{name}` holds a NUL or more than 64 KiB; use a shorter text"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_word_and_not_labds_own() {
        for name in ["A", "_x", "HF_HOME", "OMP_NUM_THREADS", "RAY_DATA_PUSH_BASED_SHUFFLE"] {
            assert_eq!(check(name, "a value\nof two lines"), Ok(()), "{name}");
        }
        for name in ["", "1A", "A B", "A=B", "Ä", "LABD_JOB", "RAY_AUTH_TOKEN", "no_proxy", "PATH"] {
            let said = check(name, "hunter2").expect_err(name);
            assert!(!said.contains("hunter2") && !said.contains('\n'), "{said}");
        }
        assert!(check("PIP_INDEX_URL", "").expect_err("own").contains("`images.build.pip_index_url`"));
        assert!(check("A", "a\0b").is_err());
    }
}
