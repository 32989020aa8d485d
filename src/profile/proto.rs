//! The Push messages (WIRE.md 3.1) as `prost` types, annotated by hand so that no `protoc` is needed. They
//! serve the file archive, the load generator and the tests, where they are the oracle of the splice in
//! `push`. The hot path does not decode.

/// push.v1.PushRequest.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PushRequest {
    /// The series of one push.
    #[prost(message, repeated, tag = "1")]
    pub series: Vec<RawProfileSeries>,
}

/// push.v1.RawProfileSeries.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RawProfileSeries {
    /// What the samples belong to.
    #[prost(message, repeated, tag = "1")]
    pub labels: Vec<LabelPair>,
    /// The profiles.
    #[prost(message, repeated, tag = "2")]
    pub samples: Vec<RawSample>,
    /// Dropped by Alloy, by us, and by the server.
    #[prost(message, repeated, tag = "3")]
    pub annotations: Vec<ProfileAnnotation>,
}

/// push.v1.RawSample.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RawSample {
    /// A pprof, usually gzipped.
    #[prost(bytes = "bytes", tag = "1")]
    pub raw_profile: bytes::Bytes,
    /// A UUID. The field is called `ID` on the wire's JSON side.
    #[prost(string, tag = "2")]
    pub id: String,
}

/// types.v1.LabelPair.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LabelPair {
    /// The label's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The label's value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// types.v1.ProfileAnnotation.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ProfileAnnotation {
    /// The annotation's key.
    #[prost(string, tag = "1")]
    pub key: String,
    /// The annotation's value.
    #[prost(string, tag = "2")]
    pub value: String,
}
