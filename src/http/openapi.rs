//! `GET /api/v1/openapi.json`: what the API takes and answers, as OpenAPI 3.1.
//!
//! A route and its entry in the document are one thing ([`Routes`]): what a handler takes ([`Takes`]) and answers
//! ([`Answers`]) is read from its own signature, and schemas come from the very types that are read and written. What a
//! signature cannot say stands beside the route in [`super::api`]: a summary, and the refusals that come from the inside.
//!
//! The document is made when it is asked for, and dropped.

use std::{collections::BTreeMap, marker::PhantomData};

use axum::{
    Extension, Json, Router,
    extract::{Request, State as From},
    handler::Handler,
    http::{HeaderMap, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response, sse::Sse},
    routing::{MethodRouter, delete, get, post},
};
use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Value, json};

use super::{
    ApiError, Shared, State, api,
    error::Problem,
    extract::{Body, LastEventId, Path, Query, Shape},
    tls::OverTls,
    turn::Turn,
    who::CSRF,
};
use crate::text::one_line;

/// Version of the specification that the document follows.
const OPENAPI: &str = "3.1.1";
/// Path under which the API stands.
pub(super) const BASE: &str = "/api/v1";

/// Right that a group of routes asks for on the page's port. The socket's own permissions decide there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// None: whoever comes.
    Nothing,
    /// Reading: a viewer's, and everybody's where `http.anonymous` says so.
    Reading,
    /// Login of any role.
    Login,
    /// Login of an admin.
    Admin,
}

impl Needs {
    /// Word for it in the document.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "anybody",
            Self::Reading => "anonymous",
            Self::Login => "viewer",
            Self::Admin => "admin",
        }
    }
}

/// Listener that a group of routes stands behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listener {
    /// The page's port.
    Page,
    /// The Unix socket.
    Socket,
}

impl Listener {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Page => "page",
            Self::Socket => "socket",
        }
    }
}

/// Entry of the document: one operation.
struct Entry {
    path: &'static str,
    method: Method,
    summary: &'static str,
    /// What else a person should know, in a few sentences.
    note: &'static str,
    /// Refusals that come from behind the handler.
    fails: &'static [u16],
    describe: fn(&mut Operation<'_>),
}

/// Routes that ask for the same right, with their entries in the document.
pub(super) struct Routes {
    needs: Needs,
    on: &'static [Listener],
    base: &'static str,
    router: Router<Shared>,
    entries: Vec<Entry>,
}

impl Routes {
    /// Group without routes, under [`BASE`].
    pub(super) fn new(needs: Needs, on: &'static [Listener]) -> Self {
        Self { needs, on, base: BASE, router: Router::new(), entries: Vec::new() }
    }

    /// The same, beside the API.
    pub(super) fn beside(needs: Needs, on: &'static [Listener]) -> Self {
        Self { base: "", ..Self::new(needs, on) }
    }

    /// Adds a GET.
    pub(super) fn get<H, T, D>(self, path: &'static str, handler: H, summary: &'static str) -> Self
    where
        H: Handler<T, Shared> + Described<D>,
        T: 'static,
    {
        self.with::<H, D>(Method::GET, path, get(handler), summary)
    }

    /// Adds a POST.
    pub(super) fn post<H, T, D>(self, path: &'static str, handler: H, summary: &'static str) -> Self
    where
        H: Handler<T, Shared> + Described<D>,
        T: 'static,
    {
        self.with::<H, D>(Method::POST, path, post(handler), summary)
    }

    /// Adds a DELETE.
    pub(super) fn delete<H, T, D>(self, path: &'static str, handler: H, summary: &'static str) -> Self
    where
        H: Handler<T, Shared> + Described<D>,
        T: 'static,
    {
        self.with::<H, D>(Method::DELETE, path, delete(handler), summary)
    }

    fn with<H: Described<D>, D>(
        mut self,
        method: Method,
        path: &'static str,
        route: MethodRouter<Shared>,
        summary: &'static str,
    ) -> Self {
        // What probes and scrapers of others put behind their addresses is theirs.
        let route =
            if H::TAKES_QUERY || !self.is_api() { route } else { route.layer(middleware::from_fn(without_query)) };
        self.router = self.router.route(path, route);
        self.entries.push(Entry { path, method, summary, note: "", fails: &[], describe: H::describe });
        self
    }

    /// Says more of the route that was added last.
    pub(super) fn note(mut self, note: &'static str) -> Self {
        if let Some(entry) = self.entries.last_mut() {
            entry.note = note;
        }
        self
    }

    /// Statuses with which the route that was added last may refuse, beside those that its handler's signature says.
    pub(super) fn fails(mut self, fails: &'static [u16]) -> Self {
        if let Some(entry) = self.entries.last_mut() {
            entry.fails = fails;
        }
        self
    }

    /// Puts something around all of these routes.
    pub(super) fn within(mut self, around: impl FnOnce(Router<Shared>) -> Router<Shared>) -> Self {
        self.router = around(self.router);
        self
    }

    /// Right that these routes ask for.
    pub(super) const fn needs(&self) -> Needs {
        self.needs
    }

    /// Whether these routes stand there.
    pub(super) fn is_on(&self, listener: Listener) -> bool {
        self.on.contains(&listener)
    }

    /// Whether these routes stand under [`BASE`].
    pub(super) fn is_api(&self) -> bool {
        !self.base.is_empty()
    }

    /// Routes alone.
    pub(super) fn into_router(self) -> Router<Shared> {
        self.router
    }
}

/// Refuses parameters where there are none: a mistyped one would be taken for one that had no effect.
async fn without_query(request: Request, next: Next) -> Response {
    match request.uri().query().filter(|query| !query.is_empty()) {
        None => next.run(request).await,
        Some(query) => {
            let text = format!("this takes no parameters, and `{}` came", one_line(query, 100));
            ApiError::new(StatusCode::BAD_REQUEST, text).into_response()
        }
    }
}

/// Handler of which the document tells: `D` is its arguments.
pub(super) trait Described<D> {
    /// Whether it takes parameters in the query.
    const TAKES_QUERY: bool;

    /// Describes what it takes and answers.
    fn describe(operation: &mut Operation<'_>);
}

macro_rules! described {
    ($($arg:ident)*) => {
        impl<F, Fut, R, $($arg),*> Described<($($arg,)*)> for F
        where
            F: FnOnce($($arg),*) -> Fut,
            Fut: Future<Output = R>,
            R: Answers,
            $($arg: Takes,)*
        {
            const TAKES_QUERY: bool = false $(|| $arg::IS_QUERY)*;

            fn describe(operation: &mut Operation<'_>) {
                $($arg::describe(operation);)*
                R::describe(operation);
            }
        }
    };
}

described!();
described!(A);
described!(A B);
described!(A B C);
described!(A B C D);
described!(A B C D E);

/// Argument of a handler.
pub(super) trait Takes {
    /// Whether it is what stands in the query.
    const IS_QUERY: bool = false;

    /// Describes what it takes, if that is anything of the request.
    fn describe(_: &mut Operation<'_>) {}
}

impl<S> Takes for From<S> {}
impl<T> Takes for Extension<T> {}
impl<T> Takes for Option<Extension<T>> {}
impl Takes for HeaderMap {}
impl Takes for OverTls {}

impl Takes for Turn {
    fn describe(operation: &mut Operation<'_>) {
        operation.refuses(&[500, 503]);
    }
}

impl<T: JsonSchema> Takes for Path<T> {
    fn describe(operation: &mut Operation<'_>) {
        operation.takes_path::<T>();
    }
}

impl<T: JsonSchema> Takes for Query<T> {
    const IS_QUERY: bool = true;

    fn describe(operation: &mut Operation<'_>) {
        operation.takes_query::<T>();
    }
}

impl<T: Shape> Takes for Body<T> {
    fn describe(operation: &mut Operation<'_>) {
        let schema = taken::<T>();
        operation.body = Some(json!({ "required": true, "content": { "application/json": { "schema": schema } } }));
        operation.refuses(&[413, 415]);
    }
}

impl Takes for LastEventId {
    fn describe(operation: &mut Operation<'_>) {
        operation.parameters.push(json!({
            "name": "Last-Event-ID",
            "in": "header",
            "description": "Id of the last event that was heard: the stream goes on after it.",
            "schema": { "type": "string" },
        }));
    }
}

/// Answer of a handler.
pub(super) trait Answers {
    /// Describes it.
    fn describe(operation: &mut Operation<'_>);
}

impl<T: Answers> Answers for Result<T, ApiError> {
    fn describe(operation: &mut Operation<'_>) {
        T::describe(operation);
    }
}

impl<T: JsonSchema> Answers for Json<T> {
    fn describe(operation: &mut Operation<'_>) {
        let schema = operation.schemas.subschema_for::<T>();
        operation.answers("application/json", &json!(schema));
    }
}

impl<S> Answers for Sse<S> {
    fn describe(operation: &mut Operation<'_>) {
        operation.answers("text/event-stream", &json!({ "type": "string" }));
    }
}

impl Answers for &'static str {
    fn describe(operation: &mut Operation<'_>) {
        Text::describe(operation);
    }
}

/// Answer that was made already, of a type that is described in its place.
pub(super) struct Made<T>(Response, PhantomData<fn() -> T>);

impl<T: IntoResponse> Made<T> {
    /// Answer of this.
    pub(super) fn of(answer: T) -> Self {
        Self(answer.into_response(), PhantomData)
    }
}

impl<T> Made<T> {
    /// Answer that is known to be of this type.
    pub(super) const fn known(answer: Response) -> Self {
        Self(answer, PhantomData)
    }
}

impl<T> IntoResponse for Made<T> {
    fn into_response(self) -> Response {
        self.0
    }
}

impl<T: Answers> Answers for Made<T> {
    fn describe(operation: &mut Operation<'_>) {
        T::describe(operation);
    }
}

/// Plain text.
pub(super) struct Text(pub(super) axum::body::Body);

impl IntoResponse for Text {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], self.0).into_response()
    }
}

impl Answers for Text {
    fn describe(operation: &mut Operation<'_>) {
        operation.answers("text/plain", &json!({ "type": "string" }));
    }
}

/// Table for a spreadsheet.
pub(super) struct Csv {
    /// What `Content-Disposition` says.
    pub(super) attachment: String,
    /// What `Content-Type` says.
    pub(super) kind: &'static str,
    /// The table.
    pub(super) text: String,
}

impl IntoResponse for Csv {
    fn into_response(self) -> Response {
        let head = [(header::CONTENT_TYPE, self.kind.to_owned()), (header::CONTENT_DISPOSITION, self.attachment)];
        (head, self.text).into_response()
    }
}

impl Answers for Csv {
    fn describe(operation: &mut Operation<'_>) {
        operation.answers("text/csv", &json!({ "type": "string" }));
    }
}

/// Answer of which the browser keeps a cookie.
pub(super) struct WithCookie<T>(pub(super) Response, pub(super) PhantomData<fn() -> T>);

impl<T> IntoResponse for WithCookie<T> {
    fn into_response(self) -> Response {
        self.0
    }
}

impl<T: JsonSchema> Answers for WithCookie<T> {
    fn describe(operation: &mut Operation<'_>) {
        Json::<T>::describe(operation);
        let cookie = json!({ "description": "The session's cookie.", "schema": { "type": "string" } });
        if let Some(answer) = operation.answers.get_mut(&200) {
            answer["headers"] = json!({ "Set-Cookie": cookie });
        }
    }
}

/// The document itself.
#[derive(JsonSchema, serde::Serialize)]
#[schemars(rename = "OpenApi", extend("description" = "OpenAPI 3.1."))]
pub(super) struct Document {
    openapi: String,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

/// One operation, as it comes to be described.
pub(super) struct Operation<'a> {
    path: &'static str,
    schemas: &'a mut SchemaGenerator,
    parameters: Vec<Value>,
    body: Option<Value>,
    answers: BTreeMap<u16, Value>,
}

impl Operation<'_> {
    fn answers(&mut self, kind: &str, schema: &Value) {
        let content = BTreeMap::from([(kind, json!({ "schema": schema }))]);
        self.answers.insert(200, json!({ "description": "As asked.", "content": content }));
    }

    fn refuses(&mut self, statuses: &[u16]) {
        for status in statuses {
            let there = json!({ "$ref": format!("#/components/responses/{}", problem_name(*status)) });
            self.answers.entry(*status).or_insert(there);
        }
    }

    fn takes_path<T: JsonSchema>(&mut self) {
        let mut schema = taken::<T>();
        let parts = match schema.get_mut("prefixItems").map(Value::take) {
            Some(Value::Array(parts)) => parts,
            _ => vec![schema],
        };
        let names = self.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
        for (name, mut schema) in names.zip(parts) {
            let (description, example) = api::part(name);
            if schema["type"] == "string" && schema.get("enum").is_none() {
                schema["minLength"] = json!(1);
            }
            let parameter = json!({
                "name": name,
                "in": "path",
                "required": true,
                "description": description,
                "schema": schema,
                "example": example,
            });
            self.parameters.push(parameter);
        }
        self.refuses(&[404]);
    }

    fn takes_query<T: JsonSchema>(&mut self) {
        let mut schema = taken::<T>();
        let Value::Object(members) = schema["properties"].take() else { return };
        for (name, mut schema) in members {
            let description = schema.as_object_mut().and_then(|schema| schema.remove("description"));
            // What is absent is left out: there is no null in a query.
            if let Some(Value::Array(types)) = schema.get("type") {
                schema["type"] = types.first().cloned().unwrap_or_default();
            }
            let parameter = json!({ "name": name, "in": "query", "description": description, "schema": schema });
            self.parameters.push(parameter);
        }
    }
}

/// Schema of what labd takes: whole, since each stands in one place only.
fn taken<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema: Schema = settings.into_generator().into_root_schema_for::<T>();
    schema.remove("title");
    let mut schema = schema.to_value();
    put_right(&mut schema);
    schema
}

/// Document of everything that [`api::all`] has, as JSON. `cookie` is the name of the cookie of a session. It is written piece by
/// piece: whole, as values, it would be two megabytes.
pub(super) fn document(cookie: &str) -> Vec<u8> {
    let settings = SchemaSettings::draft2020_12().for_serialize().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut schemas = settings.into_generator();
    let problem = json!(schemas.subschema_for::<Problem>());
    let groups = api::all();
    let mut paths: BTreeMap<String, BTreeMap<String, (&Routes, &Entry)>> = BTreeMap::new();
    for group in &groups {
        for entry in &group.entries {
            let path = format!("{}{}", group.base, entry.path);
            paths.entry(path).or_default().insert(entry.method.as_str().to_ascii_lowercase(), (group, entry));
        }
    }
    let mut text = Written(Vec::new());
    text.open("");
    text.member("openapi", &OPENAPI);
    text.member(
        "info",
        &json!({
            "title": "labd",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
            "description": api::ABOUT,
        }),
    );
    text.member("servers", &json!([{ "url": "/" }]));
    text.open("paths");
    for (path, methods) in &paths {
        text.open(path);
        for (method, (group, entry)) in methods {
            text.member(method, &operation(group, entry, path, &mut schemas));
        }
        text.close();
    }
    text.close();
    text.open("components");
    text.open("schemas");
    for (name, mut schema) in schemas.take_definitions(true) {
        put_right(&mut schema);
        text.member(&name, &schema);
    }
    text.close();
    text.open("responses");
    for (status, description) in REFUSALS {
        let content = json!({ "application/problem+json": { "schema": problem } });
        text.member(&problem_name(status), &json!({ "description": description, "content": content }));
    }
    text.close();
    text.member(
        "securitySchemes",
        &json!({
            "session": {
                "type": "apiKey",
                "in": "cookie",
                "name": cookie,
                "description": "Cookie of a session, which a login sets. Nothing is needed on the Unix socket.",
            },
            "csrf": {
                "type": "apiKey",
                "in": "header",
                "name": CSRF.as_str(),
                "description": "Token of the session, told once as `csrf` by the login. `Origin` must be the page's, too.",
            },
        }),
    );
    text.close();
    text.close();
    text.0
}

/// JSON that is written as it comes.
struct Written(Vec<u8>);

impl Written {
    /// Begins an object, as this member unless it is the outermost.
    fn open(&mut self, name: &str) {
        if !self.0.is_empty() {
            self.name(name);
        }
        self.0.push(b'{');
    }

    fn close(&mut self) {
        self.0.push(b'}');
    }

    fn member(&mut self, name: &str, value: &impl serde::Serialize) {
        self.name(name);
        self.write(value);
    }

    fn name(&mut self, name: &str) {
        if self.0.last() != Some(&b'{') {
            self.0.push(b',');
        }
        self.write(&name);
        self.0.push(b':');
    }

    fn write(&mut self, value: &impl serde::Serialize) {
        // Plain values, and a buffer that takes everything.
        let _ = serde_json::to_writer(&mut self.0, value);
    }
}

fn operation(group: &Routes, entry: &Entry, path: &str, schemas: &mut SchemaGenerator) -> Value {
    let mut operation =
        Operation { path: entry.path, schemas, parameters: Vec::new(), body: None, answers: BTreeMap::new() };
    (entry.describe)(&mut operation);
    let is_page = group.is_on(Listener::Page);
    // Whatever is asked: parameters that there are not, and on the page's port a host or an origin that is not labd's.
    operation.refuses(if is_page { &[400, 403] } else { &[400] });
    if group.needs != Needs::Nothing && is_page {
        operation.refuses(&[401]);
    }
    operation.refuses(entry.fails);
    let security = match group.needs {
        needs if needs == Needs::Nothing || !is_page => json!([]),
        Needs::Admin if entry.method != Method::GET => json!([{ "session": [], "csrf": [] }]),
        _ => json!([{ "session": [] }]),
    };
    let id: String = format!("{}{}", entry.method.as_str().to_ascii_lowercase(), path.replace(BASE, ""))
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("_");
    let tag = entry.path.split('/').nth(1).unwrap_or_default().split('.').next().unwrap_or_default();
    let answers = operation.answers.into_iter().map(|(status, answer)| (status.to_string(), answer));
    let answers: BTreeMap<String, Value> = answers.collect();
    let mut told = json!({
        "operationId": id,
        "summary": entry.summary,
        "tags": [tag],
        "parameters": operation.parameters,
        "responses": answers,
        "security": security,
        "x-labd-role": group.needs.as_str(),
        "x-labd-on": group.on.iter().map(|on| on.as_str()).collect::<Vec<_>>(),
    });
    if !entry.note.is_empty() {
        told["description"] = entry.note.into();
    }
    if let Some(body) = operation.body {
        told["requestBody"] = body;
    }
    told
}

/// Refusals, in words.
const REFUSALS: [(u16, &str); 14] = [
    (400, "Something in the request is not as it must be; `detail` says what."),
    (401, "Nobody is logged in, or what was shown is wrong or over."),
    (403, "This role may not, or the request comes from another site than labd's page."),
    (404, "There is no such thing; `detail` says which there are, or where to look."),
    (408, "The request took too long to arrive."),
    (409, "Something is in its way, such as another account's name or a quarantined GPU; `detail` says what."),
    (413, "The body is too long."),
    (415, "The body is not said to be JSON."),
    (422, "What was asked for cannot be done as things are; `detail` says why."),
    (429, "Too many tries, or one is under way; `detail` says when to come again."),
    (500, "labd has a bug, or the answer could not be worked out; try again."),
    (502, "What stands behind labd did not answer as it should."),
    (503, "Not now: busy, ending, or something that is needed is away."),
    (504, "What stands behind labd did not answer in time."),
];

/// Name of a refusal among the document's responses.
fn problem_name(status: u16) -> String {
    let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or_default();
    reason.replace(' ', "")
}

/// Puts descriptions right, which are comments in the code: without links there, in one line.
fn put_right(value: &mut Value) {
    match value {
        Value::Object(members) => {
            if let Some(Value::String(text)) = members.get_mut("description") {
                *text = text.replace("[`Self::", "`").replace("[`", "`").replace("`]", "`").replace('\n', " ");
            }
            members.values_mut().for_each(put_right);
        }
        Value::Array(all) => all.iter_mut().for_each(put_right),
        _ => {}
    }
}

/// `GET /api/v1/openapi.json`: the document. It takes some milliseconds, and a turn, so that few are made at once.
pub(super) async fn serve(From(state): From<State>, _: Turn) -> Made<Json<Document>> {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    Made::known((kind, document(&state.cookie)).into_response())
}
