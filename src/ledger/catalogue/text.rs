//! SQL text without comments and with normalized white space, for comparing and printing. Quoted text and parentheses
//! do not change: parentheses group expressions, and PostgreSQL 15 to 18 print them in the same way.

/// The same SQL on one line, without comments.
pub(crate) fn one_line(sql: &str) -> String {
    let mut out = String::with_capacity(sql.len());
    scan(sql, |part| match part {
        Part::Quoted(text) => out.push_str(text),
        Part::Blank if out.is_empty() || out.ends_with(' ') => {}
        Part::Blank => out.push(' '),
        Part::Plain(c) => out.push(c),
    });
    out.truncate(out.trim_end().len());
    out
}

/// A form for comparing only: SQL texts with the same form do the same.
pub(crate) fn essence(sql: &str) -> String {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut out = String::with_capacity(sql.len());
    let mut is_apart = false;
    scan(sql, |part| match part {
        Part::Blank => is_apart = true,
        Part::Quoted(text) => {
            out.push_str(text);
            is_apart = false;
        }
        Part::Plain(c) => {
            if is_apart && is_word(c) && out.ends_with(is_word) {
                out.push(' ');
            }
            out.push(c);
            is_apart = false;
        }
    });
    out
}

enum Part<'a> {
    /// A literal or a quoted name, with its quotes.
    Quoted(&'a str),
    /// White space or a comment.
    Blank,
    Plain(char),
}

fn scan<'a>(sql: &'a str, mut take: impl FnMut(Part<'a>)) {
    let mut rest = sql;
    while let Some(c) = rest.chars().next() {
        let length = match c {
            '\'' | '"' => rest[1..].find(c).map_or(rest.len(), |end| end + 2),
            '-' if rest.starts_with("--") => rest.find('\n').unwrap_or(rest.len()),
            _ => c.len_utf8(),
        };
        let (part, after) = rest.split_at(length);
        take(match c {
            '\'' | '"' => Part::Quoted(part),
            _ if c.is_whitespace() || length > c.len_utf8() => Part::Blank,
            _ => Part::Plain(c),
        });
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_of_sql_keeps_quoted_text_and_drops_comments() {
        let sql = "  select 'two  words -- no comment',\n  \"a  b\" -- a comment's end\n from t;\n";
        assert_eq!(one_line(sql), "select 'two  words -- no comment', \"a  b\" from t;");
        assert_eq!(one_line("it''s"), "it''s");
    }

    #[test]
    fn essence_differs_only_if_the_sql_differs() {
        assert_eq!(essence("CHECK (\n  (a > 0))"), essence("CHECK ((a>0))"));
        assert_eq!(essence("begin\n  a := 1; -- note\nend"), essence("begin a := 1; end"));
        assert_ne!(essence("a = ' '"), essence("a = ''"));
        assert_ne!(essence("a = 'x y'"), essence("a = 'xy'"));
        assert_ne!(essence("(a or b) and c"), essence("a or (b and c)"));
        assert_ne!(essence("select a b"), essence("select ab"));
    }
}
