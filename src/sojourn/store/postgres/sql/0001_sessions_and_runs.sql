-- Texts are compared byte by byte. JSON is kept as the text it came as: JSONB refuses \u0000 and changes numbers.

CREATE TABLE {schema}.sessions (
    sid bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    uid text COLLATE "C" NOT NULL,
    app_name text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    active_agent text COLLATE "C",
    event_count bigint NOT NULL,
    run_no bigint NOT NULL,
    trimmed_seq bigint NOT NULL DEFAULT 0,
    created_at double precision NOT NULL,
    updated_at double precision NOT NULL
) WITH (fillfactor = 80);
CREATE UNIQUE INDEX sessions_by_key ON {schema}.sessions (app_name, user_id, id);
CREATE INDEX sessions_by_app ON {schema}.sessions (app_name, sid);
CREATE INDEX sessions_by_user ON {schema}.sessions (app_name, user_id, sid);

-- `message` is there until the first attempt begins; from then on it is the event `first_seq`.
-- `top` is the highest ordinal of the run's events: what lies above it cannot be stored yet.
-- `version` counts what attempts wrote: an append that knows it knows the run's log.
CREATE TABLE {schema}.runs (
    uid bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sid bigint NOT NULL,
    id text COLLATE "C" NOT NULL,
    app_name text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    no bigint NOT NULL,
    status text COLLATE "C" NOT NULL,
    attempt bigint NOT NULL,
    version bigint NOT NULL DEFAULT 0,
    deaths bigint NOT NULL DEFAULT 0,
    agent text COLLATE "C",
    start_agent text COLLATE "C",
    base_ordinal bigint NOT NULL DEFAULT 0,
    base_seq bigint NOT NULL DEFAULT 0,
    transfers bigint NOT NULL DEFAULT 0,
    first_seq bigint,
    message text COLLATE "C",
    config text COLLATE "C" NOT NULL,
    attached boolean NOT NULL,
    cancel_requested text COLLATE "C",
    error text COLLATE "C",
    last_pos bigint NOT NULL,
    top bigint NOT NULL DEFAULT 0,
    retry_of text COLLATE "C",
    superseded_by text COLLATE "C",
    usage text COLLATE "C",
    custom_metadata text COLLATE "C",
    answered boolean NOT NULL DEFAULT false,
    has_undo boolean NOT NULL DEFAULT false,
    has_asked boolean NOT NULL DEFAULT false,
    trimmed boolean NOT NULL DEFAULT false,
    created_at double precision NOT NULL,
    started_at double precision,
    finished_at double precision
) WITH (fillfactor = 70);
CREATE UNIQUE INDEX runs_by_id ON {schema}.runs (app_name, id, user_id);
CREATE INDEX runs_by_session ON {schema}.runs (app_name, user_id, sid, uid);
CREATE INDEX runs_by_app ON {schema}.runs (app_name, uid);
-- `trimmed`: retention has left nothing of it but this record.
CREATE INDEX runs_whole ON {schema}.runs (sid, uid) WHERE finished_at IS NOT NULL AND NOT trimmed;
CREATE INDEX runs_unfinished ON {schema}.runs (app_name, sid) WHERE finished_at IS NULL;

-- `ordinal` is null for an event without identity. `path` is the branch behind a dot, or empty.
-- `superseded` is 0, or says by what: 1 by a later attempt, 2 by another run.
CREATE TABLE {schema}.events (
    sid bigint NOT NULL,
    seq bigint NOT NULL,
    run_uid bigint NOT NULL,
    pos bigint,
    ordinal bigint,
    path text COLLATE "C" NOT NULL,
    attempt bigint NOT NULL,
    supersedes bigint,
    superseded smallint NOT NULL DEFAULT 0,
    summary_until bigint,
    body text COLLATE "C" NOT NULL,
    PRIMARY KEY (sid, seq)
);
CREATE INDEX events_by_run ON {schema}.events (run_uid, pos);
CREATE UNIQUE INDEX events_by_identity ON {schema}.events (run_uid, ordinal, path) WHERE superseded = 0;
CREATE INDEX events_summaries ON {schema}.events (sid, seq) WHERE summary_until IS NOT NULL AND superseded = 0;

-- The function calls and responses of events that count. `open`: a call that no response came after.
CREATE TABLE {schema}.calls (
    sid bigint NOT NULL,
    call_id text COLLATE "C" NOT NULL,
    is_call boolean NOT NULL,
    seq bigint NOT NULL,
    open boolean NOT NULL,
    PRIMARY KEY (sid, call_id, is_call, seq)
);
CREATE INDEX calls_open ON {schema}.calls (sid, seq) WHERE open;

-- One row per key and owner. A null is only seen by the transaction that is about to store a value, or to delete the row.
CREATE TABLE {schema}.state (
    owner text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    value text COLLATE "C",
    PRIMARY KEY (owner, key)
) WITH (fillfactor = 80);

-- Values are JSON; null stands for a key that did not exist.
CREATE TABLE {schema}.undo (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_uid bigint NOT NULL,
    seq bigint NOT NULL,
    key text COLLATE "C" NOT NULL,
    old text COLLATE "C",
    new text COLLATE "C",
    by text COLLATE "C"
);
CREATE INDEX undo_by_run ON {schema}.undo (run_uid);

-- `name` is the key as the index takes it, which takes no long ones.
CREATE TABLE {schema}.steps (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_uid bigint NOT NULL,
    name text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    status text COLLATE "C" NOT NULL,
    result text COLLATE "C" NOT NULL,
    error text COLLATE "C",
    attempt bigint NOT NULL,
    started_at double precision NOT NULL,
    finished_at double precision NOT NULL
);
CREATE UNIQUE INDEX steps_by_name ON {schema}.steps (run_uid, name);

CREATE TABLE {schema}.interrupts (
    n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_uid bigint NOT NULL,
    name text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    digest text COLLATE "C" NOT NULL,
    prompt text COLLATE "C" NOT NULL,
    schema text COLLATE "C",
    status text COLLATE "C" NOT NULL,
    answer text COLLATE "C",
    created_at double precision NOT NULL,
    expires_at double precision,
    answered_at double precision,
    kind text COLLATE "C" NOT NULL,
    call_id text COLLATE "C"
);
CREATE UNIQUE INDEX interrupts_by_name ON {schema}.interrupts (run_uid, name);
CREATE INDEX interrupts_open ON {schema}.interrupts (run_uid) WHERE status = 'open';

-- The columns after `hour` are the fields of `Usage`. Deleting a session leaves its user's rows alone.
CREATE TABLE {schema}.user_usage (
    app_name text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    hour bigint NOT NULL,
    prompt_token_count bigint NOT NULL,
    candidates_token_count bigint NOT NULL,
    total_token_count bigint NOT NULL,
    cached_content_token_count bigint NOT NULL,
    thoughts_token_count bigint NOT NULL,
    PRIMARY KEY (app_name, user_id, hour)
);

-- Sessions that are gone and whose artifacts may not be.
CREATE TABLE {schema}.dropped_sessions (
    n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    uid text COLLATE "C" NOT NULL,
    app_name text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL
);
CREATE UNIQUE INDEX dropped_sessions_by_uid ON {schema}.dropped_sessions (uid);

-- Records a run that repeats no other and whose message changes no state. It locks the session first, as everything does
-- that writes to one.
CREATE FUNCTION {schema}.submit(
    r_app text, r_user text, r_session text, r_id text, r_begin boolean, r_create boolean, r_reject boolean,
    r_attached boolean, r_config text, r_metadata text, r_body text, r_summary bigint, l_is_call boolean[], l_id text[],
    r_now double precision, r_session_uid text
) RETURNS TABLE (
    outcome text, known bigint, busy text, sid bigint, session_uid text, active_agent text, trimmed_seq bigint,
    session_created double precision, uid bigint, no bigint, event_count bigint, keys text[], vals text[]
) LANGUAGE plpgsql AS $sojourn$
#variable_conflict use_column
DECLARE
    s record;
BEGIN
    SELECT x.uid INTO known FROM {schema}.runs x WHERE x.app_name = r_app AND x.id = r_id AND x.user_id = r_user;
    IF FOUND THEN
        outcome := 'known';
        RETURN NEXT;
        RETURN;
    END IF;
    LOOP
        SELECT x.* INTO s FROM {schema}.sessions x WHERE x.app_name = r_app AND x.user_id = r_user AND x.id = r_session FOR UPDATE;
        EXIT WHEN FOUND;
        IF NOT r_create THEN
            outcome := 'absent';
            RETURN NEXT;
            RETURN;
        END IF;
        INSERT INTO {schema}.sessions AS x (uid, app_name, user_id, id, event_count, run_no, created_at, updated_at)
        VALUES (r_session_uid, r_app, r_user, r_session, 0, 0, r_now, r_now)
        ON CONFLICT DO NOTHING RETURNING x.* INTO s;
        EXIT WHEN FOUND;
    END LOOP;
    -- Somebody else may have recorded the run while the lock was waited for.
    SELECT x.uid INTO known FROM {schema}.runs x WHERE x.app_name = r_app AND x.id = r_id AND x.user_id = r_user;
    IF FOUND THEN
        outcome := 'known';
        RETURN NEXT;
        RETURN;
    END IF;
    IF r_reject THEN
        SELECT x.id INTO busy FROM {schema}.runs x
        WHERE x.app_name = r_app AND x.sid = s.sid AND x.finished_at IS NULL AND x.status IN ('queued', 'running') LIMIT 1;
        IF FOUND THEN
            outcome := 'busy';
            RETURN NEXT;
            RETURN;
        END IF;
    END IF;
    no := s.run_no + 1;
    event_count := s.event_count + r_begin::int;
    UPDATE {schema}.sessions x SET
        run_no = s.run_no + 1, event_count = s.event_count + r_begin::int,
        updated_at = CASE WHEN r_begin THEN r_now ELSE x.updated_at END
    WHERE x.sid = s.sid;
    IF r_begin THEN
        INSERT INTO {schema}.runs AS x (
            sid, id, app_name, user_id, no, status, attempt, agent, start_agent, first_seq, config, attached, last_pos,
            custom_metadata, created_at, started_at
        ) VALUES (
            s.sid, r_id, r_app, r_user, s.run_no + 1, 'running', 1, s.active_agent, s.active_agent, s.event_count + 1, r_config,
            r_attached, 1, r_metadata, r_now, r_now
        ) RETURNING x.uid INTO uid;
        INSERT INTO {schema}.events (sid, seq, run_uid, ordinal, path, attempt, summary_until, body)
        VALUES (s.sid, s.event_count + 1, uid, 0, '', 1, r_summary, r_body);
        IF cardinality(l_id) > 0 THEN
            PERFORM {schema}.link(s.sid, s.event_count + 1, l_is_call, l_id);
        END IF;
        SELECT array_agg(x.key), array_agg(x.value) INTO keys, vals FROM {schema}.state x
        WHERE x.owner = ANY (ARRAY['s' || s.sid, 'a' || r_app, 'u' || r_app || E'\x1f' || r_user]);
    ELSE
        INSERT INTO {schema}.runs AS x (
            sid, id, app_name, user_id, no, status, attempt, message, config, attached, last_pos, custom_metadata, created_at
        ) VALUES (
            s.sid, r_id, r_app, r_user, s.run_no + 1, 'queued', 0, r_body, r_config, r_attached, 0, r_metadata, r_now
        ) RETURNING x.uid INTO uid;
    END IF;
    outcome := 'recorded';
    sid := s.sid;
    session_uid := s.uid;
    active_agent := s.active_agent;
    trimmed_seq := s.trimmed_seq;
    session_created := s.created_at;
    RETURN NEXT;
END
$sojourn$;

-- Keeps the index of calls for the calls and responses of an event, in their order.
CREATE FUNCTION {schema}.link(l_sid bigint, l_seq bigint, l_is_call boolean[], l_id text[]) RETURNS void
LANGUAGE plpgsql AS $sojourn$
BEGIN
    FOR i IN 1 .. coalesce(cardinality(l_id), 0) LOOP
        IF NOT l_is_call[i] THEN
            UPDATE {schema}.calls SET open = false WHERE sid = l_sid AND call_id = l_id[i] AND is_call AND open;
        END IF;
        INSERT INTO {schema}.calls (sid, call_id, seq, is_call, open) VALUES (l_sid, l_id[i], l_seq, l_is_call[i], l_is_call[i])
        ON CONFLICT DO NOTHING;
    END LOOP;
END
$sojourn$;

-- Appends what the first attempt of a run wrote, where nothing has to be compared with what is stored: the run is as the
-- caller knows it (`version`). Anything else raises, changes nothing, and is worked out by the caller.
--
-- a_*: the run and its new events; l_*: calls and responses in them; c_*: changes of state, at most one for a key, ordered
-- by owner and key (the order in which all lock them): a value, an increment, or a deletion, and the event they go with;
-- s_*: steps; r_*: what becomes of the run; u_*: what the user spends, and from when on the ledger is read.
CREATE FUNCTION {schema}.append(
    a_sid bigint, a_uid bigint, a_attempt bigint, a_version bigint, a_now double precision, a_top bigint,
    a_body text[], a_path text[], a_ordinal bigint[], a_summary bigint[],
    l_event integer[], l_is_call boolean[], l_id text[],
    c_event integer[], c_owner text[], c_key text[], c_value text[], c_by bigint[],
    s_name text[], s_key text[], s_status text[], s_result text[], s_error text[], s_attempt bigint[],
    s_started double precision[], s_finished double precision[],
    r_status text, r_usage text, r_error text,
    u_hour bigint, u_counts bigint[], u_since double precision
) RETURNS TABLE (
    event_count bigint, cancel_requested text, deaths bigint, attached boolean, spent bigint[]
) LANGUAGE plpgsql AS $sojourn$
#variable_conflict use_column
DECLARE
    n integer := cardinality(a_body);
    ends boolean := r_status <> 'running';
    run record;
    seq bigint;
    pos bigint;
    app text;
    owner_id text;
    old text;
    new text;
    is_new boolean;
BEGIN
    UPDATE {schema}.sessions x SET event_count = x.event_count + n, updated_at = a_now WHERE x.sid = a_sid
    RETURNING x.event_count - n, x.app_name, x.user_id INTO seq, app, owner_id;
    UPDATE {schema}.runs x SET
        status = r_status, version = x.version + 1, last_pos = x.last_pos + n + ends::int, top = greatest(x.top, a_top), usage = r_usage,
        error = r_error, finished_at = CASE WHEN ends THEN a_now END,
        has_undo = NOT ends AND (x.has_undo OR c_key IS NOT NULL)
    WHERE x.uid = a_uid AND x.sid = a_sid AND x.status = 'running' AND x.attempt = a_attempt AND x.version = a_version
    RETURNING x.last_pos - n - ends::int AS pos, x.cancel_requested, x.deaths, x.attached, x.has_asked INTO run;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the run is not as it was';
    END IF;
    pos := run.pos;
    FOR i IN 1 .. n LOOP
        INSERT INTO {schema}.events (sid, seq, run_uid, pos, ordinal, path, attempt, summary_until, body)
        VALUES (a_sid, seq + i, a_uid, pos + i, a_ordinal[i], a_path[i], a_attempt, a_summary[i], a_body[i]);
    END LOOP;
    FOR i IN 1 .. coalesce(cardinality(l_id), 0) LOOP
        PERFORM {schema}.link(a_sid, seq + l_event[i], l_is_call[i:i], l_id[i:i]);
    END LOOP;
    FOR i IN 1 .. coalesce(cardinality(c_key), 0) LOOP
        is_new := false;
        LOOP
            SELECT x.value INTO old FROM {schema}.state x WHERE x.owner = c_owner[i] AND x.key = c_key[i] FOR UPDATE;
            EXIT WHEN FOUND OR (c_value[i] IS NULL AND c_by[i] IS NULL);
            INSERT INTO {schema}.state (owner, key, value) VALUES (c_owner[i], c_key[i], coalesce(c_value[i], c_by[i]::text))
            ON CONFLICT DO NOTHING;
            is_new := FOUND;
            EXIT WHEN is_new;
        END LOOP;
        new := c_value[i];
        IF c_by[i] IS NOT NULL THEN
            IF old IS NULL THEN
                new := c_by[i]::text;
            ELSIF old ~ '^(0|-?[1-9][0-9]{0,14})$' THEN
                new := (old::bigint + c_by[i])::text;
            ELSE
                RAISE EXCEPTION 'not a small whole number';
            END IF;
        END IF;
        IF new IS NULL THEN
            DELETE FROM {schema}.state x WHERE x.owner = c_owner[i] AND x.key = c_key[i];
        ELSIF NOT is_new THEN
            UPDATE {schema}.state x SET value = new WHERE x.owner = c_owner[i] AND x.key = c_key[i];
        END IF;
        IF NOT ends THEN
            INSERT INTO {schema}.undo (run_uid, seq, key, old, new, by)
            VALUES (a_uid, seq + c_event[i], c_key[i], old, new, c_by[i]::text);
        END IF;
    END LOOP;
    -- A step that is replaced goes to the end: the order is that of the last append.
    FOR i IN 1 .. coalesce(cardinality(s_key), 0) LOOP
        DELETE FROM {schema}.steps x WHERE x.run_uid = a_uid AND x.name = s_name[i];
        INSERT INTO {schema}.steps (run_uid, name, key, status, result, error, attempt, started_at, finished_at)
        VALUES (
            a_uid, s_name[i], s_key[i], s_status[i], s_result[i], s_error[i], s_attempt[i], s_started[i], s_finished[i]
        );
    END LOOP;
    IF ends THEN
        DELETE FROM {schema}.undo x WHERE x.run_uid = a_uid;
        IF run.has_asked THEN
            UPDATE {schema}.interrupts x SET status = 'dropped' WHERE x.run_uid = a_uid AND x.status = 'open';
        END IF;
    END IF;
    IF u_counts IS NOT NULL THEN
        PERFORM {schema}.spend(app, owner_id, u_hour, u_counts);
    END IF;
    IF u_since IS NOT NULL THEN
        SELECT array_agg(
            ARRAY[
                x.hour, x.prompt_token_count, x.candidates_token_count, x.total_token_count, x.cached_content_token_count,
                x.thoughts_token_count
            ] ORDER BY x.hour
        ) INTO spent FROM {schema}.user_usage x WHERE x.app_name = app AND x.user_id = owner_id AND x.hour > u_since;
    END IF;
    RETURN QUERY SELECT seq + n, run.cancel_requested, run.deaths, run.attached, spent;
END
$sojourn$;

-- Adds to the sums of a user's hour, which stay at the largest number of their columns once they are there.
CREATE FUNCTION {schema}.spend(u_app text, u_user text, u_hour bigint, u_counts bigint[]) RETURNS void
LANGUAGE sql AS $sojourn$
    INSERT INTO {schema}.user_usage AS x VALUES (
        u_app, u_user, u_hour, u_counts[1], u_counts[2], u_counts[3], u_counts[4], u_counts[5]
    )
    ON CONFLICT (app_name, user_id, hour) DO UPDATE SET
        prompt_token_count = least(x.prompt_token_count::numeric + excluded.prompt_token_count, 9223372036854775807),
        candidates_token_count =
            least(x.candidates_token_count::numeric + excluded.candidates_token_count, 9223372036854775807),
        total_token_count = least(x.total_token_count::numeric + excluded.total_token_count, 9223372036854775807),
        cached_content_token_count =
            least(x.cached_content_token_count::numeric + excluded.cached_content_token_count, 9223372036854775807),
        thoughts_token_count = least(x.thoughts_token_count::numeric + excluded.thoughts_token_count, 9223372036854775807)
$sojourn$;
