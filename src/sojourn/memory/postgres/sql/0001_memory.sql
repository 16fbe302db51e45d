-- Whose entries they are, and what their scores depend on. Who writes for a user holds the user's row. `changes` goes up with each
-- transaction that writes: who has read something of the user knows by it whether that is still so.
CREATE TABLE {schema}.memory_scopes (
    scope bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    app_name text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    entries bigint NOT NULL DEFAULT 0,
    length bigint NOT NULL DEFAULT 0,
    changes bigint NOT NULL DEFAULT 0,
    UNIQUE (app_name, user_id)
);

-- A row is never changed in what is searched: an entry in place of another has a new number.
-- The author is kept as bytes, and so compared: it may hold a NUL. The body is JSON, in which a NUL is escaped.
CREATE TABLE {schema}.memory_entries (
    entry bigint GENERATED ALWAYS AS IDENTITY,
    scope bigint NOT NULL REFERENCES {schema}.memory_scopes,
    id text COLLATE "C" NOT NULL,
    session_id text COLLATE "C",
    from_event boolean NOT NULL,
    author bytea,
    "timestamp" double precision NOT NULL,
    marks text[] NOT NULL,
    words bigint[] NOT NULL,
    length integer NOT NULL,
    body text NOT NULL,
    PRIMARY KEY (scope, entry) INCLUDE (length),
    UNIQUE (scope, id)
);
CREATE INDEX memory_entries_by_number ON {schema}.memory_entries (entry);
CREATE INDEX memory_entries_by_session ON {schema}.memory_entries (scope, session_id) WHERE session_id IS NOT NULL;
CREATE INDEX memory_entries_by_time ON {schema}.memory_entries (scope, "timestamp" DESC, id);

-- Which entries have a word, by its number, and how often. Everything is in the index, which is in the order of the questions.
CREATE TABLE {schema}.memory_words (
    scope bigint NOT NULL,
    word bigint NOT NULL,
    entry bigint NOT NULL,
    count integer NOT NULL,
    length integer NOT NULL,
    PRIMARY KEY (scope, word, entry) INCLUDE (count, length)
);
