//! As much HTTP/1.1 as git needs: one request per connection, bodies with a length or in chunks.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

pub struct Request {
    pub method: String,
    pub path: String,
    pub query: String,
    headers: HashMap<String, String>,
    stream: BufReader<TcpStream>,
}

impl Request {
    /// `None` if the client closed without one.
    pub fn read(stream: TcpStream) -> io::Result<Option<Request>> {
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace();
        let method = words.next().unwrap_or_default().to_owned();
        let target = words.next().unwrap_or_default().to_owned();
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            stream.read_line(&mut line)?;
            match line.trim_end().split_once(':') {
                None => break,
                Some((name, value)) => drop(headers.insert(name.to_ascii_lowercase(), value.trim().to_owned())),
            }
        }
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        Ok(Some(Request { method, path: path.into(), query: query.into(), headers, stream }))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The body and the other direction of the connection.
    pub fn into_parts(mut self) -> io::Result<(Box<dyn Read>, TcpStream)> {
        let mut out = self.stream.get_ref().try_clone()?;
        if self.headers.contains_key("expect") {
            out.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let chunked = self.headers.get("transfer-encoding").is_some_and(|value| value == "chunked");
        let length = self.headers.remove("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
        let body: Box<dyn Read> = if chunked {
            Box::new(Chunked { stream: self.stream, left: 0, ended: false })
        } else {
            Box::new(self.stream.take(length))
        };
        Ok((body, out))
    }
}

struct Chunked {
    stream: BufReader<TcpStream>,
    left: usize,
    ended: bool,
}

impl Read for Chunked {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !self.ended {
            let mut line = String::new();
            self.stream.read_line(&mut line)?;
            self.left = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
            self.ended = self.left == 0;
            if self.ended {
                self.stream.read_line(&mut line)?;
            }
        }
        if self.ended {
            return Ok(0);
        }
        let room = buf.len().min(self.left);
        let count = self.stream.read(&mut buf[..room])?;
        self.left -= count;
        if self.left == 0 {
            self.stream.read_line(&mut String::new())?;
        }
        Ok(count)
    }
}
