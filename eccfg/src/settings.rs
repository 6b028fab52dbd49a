//! Where the servers are, whom to trust and who we are: four sources, one answer.
//!
//! Options beat environment variables, those beat `~/.config/eccluster/eccfg.toml`, that beats the working copy's metadata.
//! Servers, CA and credentials are looked up independently; within credentials the highest source that names a secret wins,
//! and a user name given above a token means that the token is not wanted. Nothing is asked and nothing is connected here:
//! [`crate::connect`] does both, so that every combination can be tested as a value.

use std::fmt;
use std::path::{Path, PathBuf};

use cluster::documents::schema::eccfg::Eccfg;
use cluster::documents::{LocalError, load_local};
use cluster::http_client::{ClientError, ServerUrl};

use crate::cli::CommonOptions;
use crate::environment::Environment;

/// A password or token. Never shown, not even by `--debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The secret itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A secret, or the file that holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum SecretSource {
    Password(Secret),
    PasswordFile(PathBuf),
    Token(Secret),
    TokenFile(PathBuf),
}

/// What one source says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Level {
    servers: Vec<String>,
    ca: Option<PathBuf>,
    username: Option<String>,
    secret: Option<SecretSource>,
    wc: Option<PathBuf>,
}

/// What the sources say together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Servers in the order to try.
    pub servers: Vec<ServerUrl>,
    /// The file with the CA's certificate.
    pub ca: Option<PathBuf>,
    /// The user name, wherever it stood.
    pub username: Option<String>,
    /// How to prove it.
    pub login: Login,
    /// The working copy that was named for this run, by option or environment.
    pub wc: Option<PathBuf>,
    /// The one to take where there is none around the current directory.
    pub wc_default: Option<PathBuf>,
    /// What the user should know about these settings.
    pub warnings: Vec<String>,
}

/// The proof that was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Login {
    /// None: ask, use the node's identity, or go without.
    #[default]
    Missing,
    /// A password for [`Settings::username`].
    Password(Secret),
    /// A bearer token.
    Token(Secret),
}

/// A setting cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A password or token file cannot be read.
    #[error("{path} cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The user's configuration file cannot be used.
    #[error(transparent)]
    File(#[from] LocalError),
    /// A password or token file holds nothing.
    #[error("{path} holds no {what}")]
    EmptySecret {
        /// The file.
        path: PathBuf,
        /// Password or token.
        what: &'static str,
    },
    /// A server's URL cannot be used.
    #[error(transparent)]
    ServerUrl(#[from] ClientError),
}

impl Settings {
    /// Puts options, environment and the user's file together. The working copy's metadata comes last and separately
    /// ([`crate::connect`]), because which working copy it is depends on these.
    pub fn resolve(options: &CommonOptions, environment: &Environment) -> Result<Settings, SettingsError> {
        let mut warnings = Vec::new();
        if options.password.is_some() || (options.token.is_some()) {
            let option = if options.password.is_some() { "--password" } else { "--token" };
            warnings.push(format!("others on this machine can read {option} in the process list; use {option}-file"));
        }
        let mut levels = vec![
            Level::of_options(options).with_absolute_files(environment),
            Level::of_environment(environment).with_absolute_files(environment),
        ];
        let mut wc_default = None;
        if let Some(path) = environment.user_config().filter(|path| path.exists()) {
            let mut level = Level::of_file(&path)?;
            warnings.extend(level.too_open(&path));
            wc_default = level.wc.take();
            levels.push(level);
        }
        let mut settings = combine(levels)?;
        settings.wc_default = wc_default;
        settings.warnings = warnings;
        Ok(settings)
    }
}

impl Level {
    fn of_options(options: &CommonOptions) -> Level {
        Level {
            servers: options.server.clone(),
            ca: options.ca.clone(),
            username: options.username.clone(),
            secret: SecretSource::first(
                options.token.as_deref(),
                options.token_file.as_deref(),
                options.password.as_deref(),
                options.password_file.as_deref(),
            ),
            wc: options.wc.clone(),
        }
    }

    /// File names that were typed or exported are relative to the current directory.
    fn with_absolute_files(mut self, environment: &Environment) -> Level {
        let absolute = |path: &mut PathBuf| *path = environment.absolute(path);
        self.ca.iter_mut().for_each(absolute);
        if let Some(SecretSource::PasswordFile(path) | SecretSource::TokenFile(path)) = &mut self.secret {
            absolute(path);
        }
        self
    }

    fn of_environment(environment: &Environment) -> Level {
        let path = |name| environment.variable(name).map(PathBuf::from);
        let servers = environment.text("ECCFG_SERVER").unwrap_or_default().split(',').map(str::trim);
        Level {
            servers: servers.filter(|url| !url.is_empty()).map(str::to_owned).collect(),
            ca: path("ECCFG_CA"),
            username: environment.text("ECCFG_USERNAME").map(str::to_owned),
            secret: SecretSource::first(
                environment.text("ECCFG_TOKEN"),
                path("ECCFG_TOKEN_FILE").as_deref(),
                environment.text("ECCFG_PASSWORD"),
                path("ECCFG_PASSWORD_FILE").as_deref(),
            ),
            wc: path("ECCFG_WC"),
        }
    }

    fn of_file(path: &Path) -> Result<Level, SettingsError> {
        let file: Eccfg = load_local(path)?.unwrap_or_default();
        let dir = path.parent().unwrap_or(Path::new("/"));
        let beside = |name: Option<PathBuf>| name.map(|name| dir.join(name));
        Ok(Level {
            servers: file.servers,
            ca: beside(file.ca),
            username: file.username,
            secret: SecretSource::first(
                file.token.as_ref().map(|secret| secret.0.as_str()),
                beside(file.token_file).as_deref(),
                file.password.as_ref().map(|secret| secret.0.as_str()),
                beside(file.password_file).as_deref(),
            ),
            wc: beside(file.wc),
        })
    }

    /// A file with a secret inside that others may read is worth a word.
    fn too_open(&self, path: &Path) -> Option<String> {
        use std::os::unix::fs::PermissionsExt;
        let secret_inside = matches!(self.secret, Some(SecretSource::Password(_) | SecretSource::Token(_)));
        let mode = std::fs::metadata(path).ok()?.permissions().mode();
        (secret_inside && mode & 0o077 != 0)
            .then(|| format!("{} holds a secret and others may read it; chmod 600 it", path.display()))
    }
}

impl SecretSource {
    fn first(
        token: Option<&str>,
        token_file: Option<&Path>,
        password: Option<&str>,
        password_file: Option<&Path>,
    ) -> Option<SecretSource> {
        None.or_else(|| token.map(|text| SecretSource::Token(Secret::new(text))))
            .or_else(|| token_file.map(|path| SecretSource::TokenFile(path.to_owned())))
            .or_else(|| password.map(|text| SecretSource::Password(Secret::new(text))))
            .or_else(|| password_file.map(|path| SecretSource::PasswordFile(path.to_owned())))
    }

    fn is_password(&self) -> bool {
        matches!(self, SecretSource::Password(_) | SecretSource::PasswordFile(_))
    }

    fn load(self) -> Result<Login, SettingsError> {
        Ok(match self {
            SecretSource::Password(secret) => Login::Password(secret),
            SecretSource::Token(secret) => Login::Token(secret),
            SecretSource::PasswordFile(path) => Login::Password(read_secret(&path, "password")?),
            SecretSource::TokenFile(path) => Login::Token(read_secret(&path, "token")?),
        })
    }
}

/// `levels` by falling priority.
fn combine(levels: Vec<Level>) -> Result<Settings, SettingsError> {
    let servers =
        levels.iter().find(|level| !level.servers.is_empty()).map(|level| level.servers.clone()).unwrap_or_default();
    let servers = servers.iter().map(|url| url.parse()).collect::<Result<_, ClientError>>()?;
    let ca = levels.iter().find_map(|level| level.ca.clone());
    let wc = levels.iter().find_map(|level| level.wc.clone());
    let username = levels.iter().find_map(|level| level.username.clone());
    let named_at = levels.iter().position(|level| level.username.is_some()).unwrap_or(usize::MAX);
    let secret =
        levels.into_iter().enumerate().find_map(|(i, level)| level.secret.filter(|s| i <= named_at || s.is_password()));
    let login = secret.map(SecretSource::load).transpose()?.unwrap_or_default();
    Ok(Settings { servers, ca, username, login, wc, ..Settings::default() })
}

fn read(path: &Path) -> Result<String, SettingsError> {
    std::fs::read_to_string(path).map_err(|source| SettingsError::Read { path: path.to_owned(), source })
}

/// The first line of a file that holds a secret.
pub fn read_secret(path: &Path, what: &'static str) -> Result<Secret, SettingsError> {
    let text = read(path)?;
    let line = text.lines().next().unwrap_or_default().trim();
    if line.is_empty() {
        Err(SettingsError::EmptySecret { path: path.to_owned(), what })
    } else {
        Ok(Secret::new(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(username: Option<&str>, secret: Option<SecretSource>) -> Level {
        Level { username: username.map(str::to_owned), secret, ..Level::default() }
    }

    fn names(settings: &Settings) -> Vec<&str> {
        settings.servers.iter().map(ServerUrl::as_str).collect()
    }

    fn password(text: &str) -> Option<SecretSource> {
        Some(SecretSource::Password(Secret::new(text)))
    }

    fn token(text: &str) -> Option<SecretSource> {
        Some(SecretSource::Token(Secret::new(text)))
    }

    #[test]
    fn the_highest_source_with_a_secret_wins() {
        let cases: &[(Vec<Level>, Option<&str>, Login)] = &[
            (vec![level(None, None), level(None, token("t"))], None, Login::Token(Secret::new("t"))),
            (
                vec![level(None, token("a")), level(Some("joe"), password("b"))],
                Some("joe"),
                Login::Token(Secret::new("a")),
            ),
            // A user name above a token: that person's password is wanted, not somebody's token.
            (vec![level(Some("joe"), None), level(None, token("t"))], Some("joe"), Login::Missing),
            (
                vec![level(Some("joe"), None), level(Some("ann"), password("p"))],
                Some("joe"),
                Login::Password(Secret::new("p")),
            ),
            (
                vec![level(None, password("p")), level(Some("ann"), token("t"))],
                Some("ann"),
                Login::Password(Secret::new("p")),
            ),
            (vec![], None, Login::Missing),
        ];
        for (levels, username, login) in cases {
            let settings = combine(levels.clone()).unwrap();
            assert_eq!((settings.username.as_deref(), &settings.login), (*username, login), "{levels:?}");
        }
    }

    #[test]
    fn options_beat_environment_beats_file() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join(".config/eccluster");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("eccfg.toml"), "server = \"https://c\"\nca = \"ca.pem\"\ntoken = \"from-file\"\n")
            .unwrap();
        let env = Environment::empty("/").with("HOME", home.path()).with("ECCFG_SERVER", "a:1, b ,");
        let settings = Settings::resolve(&CommonOptions::default(), &env).unwrap();
        assert_eq!(names(&settings), ["https://a:1", "https://b:2027"]);
        assert_eq!(settings.ca, Some(dir.join("ca.pem")));
        assert_eq!(settings.login, Login::Token(Secret::new("from-file")));
        assert_eq!(settings.warnings.len(), 1, "the file is readable by others: {:?}", settings.warnings);
        let options = CommonOptions { server: vec!["z".into()], password: Some("p".into()), ..Default::default() };
        let settings = Settings::resolve(&options, &env).unwrap();
        assert_eq!(names(&settings), ["https://z:2027"]);
        assert_eq!(settings.login, Login::Password(Secret::new("p")));
        assert!(!format!("{settings:?}").contains("\"p\""));
    }

    #[test]
    fn a_wrong_file_names_its_line() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join(".config/eccluster");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("eccfg.toml"), "username = \"joe\"\nservr = \"c\"\n").unwrap();
        let env = Environment::empty("/").with("HOME", home.path());
        let error = Settings::resolve(&CommonOptions::default(), &env).unwrap_err().to_string();
        assert!(error.contains("eccfg.toml:2:1: ") && error.contains("servr"), "{error}");
    }

    #[test]
    fn secret_files_hold_one_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hush\nmore\n").unwrap();
        assert_eq!(read_secret(file.path(), "token").unwrap().expose(), "hush");
        std::fs::write(file.path(), "\n").unwrap();
        assert!(matches!(read_secret(file.path(), "token"), Err(SettingsError::EmptySecret { .. })));
    }
}
