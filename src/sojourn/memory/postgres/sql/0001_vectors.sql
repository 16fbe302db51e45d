CREATE EXTENSION IF NOT EXISTS vector;

CREATE TABLE {schema}.memory_models (
    model integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE,
    dimensions integer NOT NULL
);

-- Processes read the vectors of a user, one and all, and keep them. So they are small, and stay in their rows as long as these fit a
-- page. That of an entry by a model never changes.
CREATE TABLE {schema}.memory_vectors (
    scope bigint NOT NULL,
    model integer NOT NULL REFERENCES {schema}.memory_models,
    entry bigint NOT NULL,
    vector halfvec NOT NULL,
    PRIMARY KEY (scope, entry, model),
    FOREIGN KEY (scope, entry) REFERENCES {schema}.memory_entries (scope, entry) ON DELETE CASCADE
) WITH (toast_tuple_target = 8160);
