package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"strings"

	modernc "modernc.org/sqlite"
)

// A conn is one connection to the file with the statements that it has prepared.
// One goroutine uses it at a time. It goes past database/sql, whose pool and conversions
// would cost each of the many small statements more than their arguments do.
type conn struct {
	db         driver.Conn
	statements map[string]driver.Stmt
	named      []driver.NamedValue // what the arguments of a statement are handed over in
	// fault fails statements in place of the file: of what a disk can't be made to
	// do in a test. It is called before each, and again after it was run.
	fault func(query string, after bool) error
}

// dial opens a connection to a file, with parameters of the URI ("mode=ro") and
// pragmas ("busy_timeout(2000)").
func dial(file string, parameters ...string) (*conn, error) {
	path, err := filepath.Abs(file)
	if err != nil {
		return nil, err
	}
	if path = filepath.ToSlash(path); !strings.HasPrefix(path, "/") {
		path = "/" + path // a volume's letter
	}
	uri := "file://" + (&url.URL{Path: path}).EscapedPath()
	if len(parameters) > 0 {
		uri += "?" + strings.Join(parameters, "&")
	}
	db, err := new(modernc.Driver).Open(uri)
	if err != nil {
		return nil, err
	}
	return &conn{db: db, statements: map[string]driver.Stmt{}}, nil
}

// close ends the connection; its transaction is rolled back.
func (c *conn) close() error {
	if c == nil {
		return nil
	}
	for _, s := range c.statements {
		s.Close() // its error says once more why its last run failed
	}
	return c.db.Close()
}

// prepare returns the statement of a query, which is one of a fixed number.
func (c *conn) prepare(query string) (driver.Stmt, error) {
	if s := c.statements[query]; s != nil {
		return s, nil
	}
	s, err := c.db.Prepare(query)
	if err != nil {
		return nil, err
	}
	c.statements[query] = s
	return s, nil
}

// exec runs a statement and returns how many rows it changed. Arguments are int64,
// string, []byte or nil.
func (c *conn) exec(query string, args ...driver.Value) (int64, error) {
	c.named = c.named[:0]
	for i, v := range args {
		c.named = append(c.named, driver.NamedValue{Ordinal: i + 1, Value: v})
	}
	return c.execNamed(query, c.named)
}

func (c *conn) execNamed(query string, args []driver.NamedValue) (int64, error) {
	if c.fault != nil {
		if err := c.fault(query, false); err != nil {
			return 0, err
		}
	}
	s, err := c.prepare(query)
	if err != nil {
		return 0, err
	}
	result, err := s.(driver.StmtExecContext).ExecContext(context.Background(), args)
	if err != nil {
		return 0, err
	}
	if c.fault != nil {
		if err := c.fault(query, true); err != nil {
			return 0, err
		}
	}
	return result.RowsAffected()
}

// script runs statements that return nothing and are not kept.
func (c *conn) script(queries string) error {
	_, err := c.db.(driver.ExecerContext).ExecContext(context.Background(), queries, nil)
	return err
}

// errEnough ends a query before its last row.
var errEnough = errors.New("enough")

// enough ends a query where there is enough. That is how queries are limited: a LIMIT
// that is an argument has SQLite compile the statement anew whenever it is another.
func enough(yes bool) error {
	if yes {
		return errEnough
	}
	return nil
}

// query runs a statement and hands each row over, whose values are valid until the
// next. It ends with ctx, and without an error where row returns errEnough.
func (c *conn) query(ctx context.Context, query string, args []driver.Value, row func([]driver.Value) error) (err error) {
	if c.fault != nil {
		if err := c.fault(query, false); err != nil {
			return err
		}
	}
	s, err := c.prepare(query)
	if err != nil {
		return err
	}
	named := make([]driver.NamedValue, len(args))
	for i, v := range args {
		named[i] = driver.NamedValue{Ordinal: i + 1, Value: v}
	}
	rows, err := s.(driver.StmtQueryContext).QueryContext(ctx, named)
	if err != nil {
		return err
	}
	defer func() {
		if e := rows.Close(); err == nil && e != nil {
			err = e
		}
	}()
	values := make([]driver.Value, len(rows.Columns()))
	for {
		switch err := rows.Next(values); err {
		case nil:
		case io.EOF:
			return nil
		default:
			return err
		}
		switch err := row(values); err {
		case nil:
		case errEnough:
			return nil
		default:
			return err
		}
		if ctx.Done() != nil && ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// number returns the one number that a query finds, and whether it finds one.
func (c *conn) number(query string, args ...driver.Value) (n int64, found bool, err error) {
	err = c.query(context.Background(), query, args, func(row []driver.Value) error {
		if row[0] == nil {
			return nil
		}
		v, ok := row[0].(int64)
		if !ok {
			return fmt.Errorf("%T in place of a number", row[0])
		}
		n, found = v, true
		return nil
	})
	return n, found, err
}
