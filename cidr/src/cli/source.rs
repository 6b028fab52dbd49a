//! Whom a command asks: the daemon on this machine through its control socket, or another machine's over HTTPS.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use cluster::command_line::Failure;
use cluster::control;
use cluster::http_client::{ApiClient, Call, ClientError, Credentials, ServerUrl};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::daemon::control::{CountArgs, QueryArgs, RemoveArgs};
use crate::service::Count;

const PROGRAM: &str = "cidr";
/// The daemon has its own limits; this is for one that is gone.
const HEAD: Duration = Duration::from_secs(120);

/// Which daemon to ask.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Another machine's daemon")]
pub struct SourceOptions {
    /// Ask this daemon over HTTPS instead of the one on this machine, such as https://n1:9000
    #[arg(long, value_name = "URL", global = true, requires = "ca")]
    server: Option<ServerUrl>,
    /// The cluster's CA
    #[arg(long, value_name = "FILE", global = true, env = "ECCFG_CA")]
    ca: Option<PathBuf>,
    /// Log in as this user
    #[arg(long, value_name = "NAME", global = true, env = "ECCFG_USERNAME", requires = "password_file")]
    username: Option<String>,
    /// The file with the user's password
    #[arg(long, value_name = "FILE", global = true, env = "ECCFG_PASSWORD_FILE")]
    password_file: Option<PathBuf>,
    /// The file with an API token
    #[arg(long, value_name = "FILE", global = true, env = "ECCFG_TOKEN_FILE", conflicts_with = "username")]
    token_file: Option<PathBuf>,
}

/// Where answers come from.
pub enum Source {
    /// The control socket.
    Here,
    /// HTTPS.
    There(ApiClient),
}

fn secret(path: &std::path::Path) -> Result<zeroize::Zeroizing<String>, Failure> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| Failure::new(format!("cannot read {}: {error}", path.display())).usage())?;
    Ok(zeroize::Zeroizing::new(text.trim_end_matches(['\n', '\r']).to_owned()))
}

impl SourceOptions {
    /// The daemon that these options name.
    pub fn open(&self) -> Result<Source, Failure> {
        let (Some(server), Some(ca)) = (&self.server, &self.ca) else { return Ok(Source::Here) };
        let ca = std::fs::read_to_string(ca)
            .map_err(|error| Failure::new(format!("cannot read {}: {error}", ca.display())).usage())?;
        let credentials = match (&self.username, &self.password_file, &self.token_file) {
            (Some(username), Some(file), _) => {
                Credentials::Basic { username: username.clone(), password: secret(file)? }
            }
            (_, _, Some(file)) => Credentials::Bearer(secret(file)?),
            _ => Credentials::None,
        };
        let client = ApiClient::new(vec![server.clone()], &ca, credentials).map_err(|error| of_client(&error))?;
        Ok(Source::There(client))
    }
}

fn of_client(error: &ClientError) -> Failure {
    let failure = Failure::of(error);
    if error.status() == Some(400) { failure.usage() } else { failure }
}

impl Source {
    /// Asks a question and hands every piece of the answer to `each`, until that says that it has seen enough.
    pub async fn query(
        &self,
        query: &str,
        format: &str,
        each: &mut dyn FnMut(&str) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        match self {
            Self::Here => {
                let args = QueryArgs { query: query.into(), format: format.into() };
                let (leave, mut left) = oneshot::channel();
                let mut leave = Some(leave);
                let part = |part: Value| {
                    if let (Some(text), true) = (part.as_str(), leave.is_some())
                        && let Err(failure) = each(text)
                    {
                        let _ = leave.take().map(|leave| leave.send(failure));
                    }
                };
                // Whoever has seen enough hangs up, and the daemon ends the query.
                tokio::select! {
                    biased;
                    Ok(failure) = &mut left => return Err(failure),
                    answered = control::call_streaming(PROGRAM, "query", args, part) => drop(answered?),
                }
                left.try_recv().map_or(Ok(()), Err)
            }
            Self::There(client) => {
                let call = Call::get("/query").query("q", query).query("format", format).streaming(HEAD);
                let mut reply = client.send(call).await.map_err(|error| of_client(&error))?;
                while let Some(piece) = reply.chunk().await.map_err(|error| of_client(&error))? {
                    each(&String::from_utf8_lossy(&piece))?;
                }
                Ok(())
            }
        }
    }

    /// Counts lines.
    pub async fn add(&self, text: String) -> Result<Value, Failure> {
        match self {
            Self::Here => Ok(control::call(PROGRAM, "add", text).await?),
            Self::There(client) => {
                let payload = cluster::http_client::Payload::Bytes(text.into_bytes().into());
                let call = Call::post("/events").body("text/plain", payload);
                let reply = client.send(call).await.map_err(|error| of_client(&error))?;
                reply.json().await.map_err(|error| of_client(&error))
            }
        }
    }

    /// What was counted lately.
    pub async fn count(&self, args: CountArgs) -> Result<Count, Failure> {
        let answer: Value = match self {
            Self::Here => control::call(PROGRAM, "count", args).await?,
            Self::There(client) => {
                let call = Call::get("/count").query("series", args.series).query("block", args.block);
                let call = call.query("last", args.last);
                let reply = client.send(call).await.map_err(|error| of_client(&error))?;
                reply.json().await.map_err(|error| of_client(&error))?
            }
        };
        serde_json::from_value(answer).map_err(|error| Failure::of(&error))
    }

    /// Forgets an address.
    pub async fn remove(&self, args: RemoveArgs) -> Result<Value, Failure> {
        match self {
            Self::Here => Ok(control::call(PROGRAM, "remove", args).await?),
            Self::There(client) => {
                let call = Call::post("/remove").query("series", args.series).query("address", args.address);
                let reply = client.send(call).await.map_err(|error| of_client(&error))?;
                reply.json().await.map_err(|error| of_client(&error))
            }
        }
    }

    /// All series.
    pub async fn series(&self) -> Result<Value, Failure> {
        match self {
            Self::Here => Ok(control::call(PROGRAM, "series", Value::Null).await?),
            Self::There(client) => client.get_json("/series").await.map_err(|error| of_client(&error)),
        }
    }
}
