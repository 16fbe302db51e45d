"""A double of a Qdrant server, for the path of the client: no server can be installed here.

It is not the server. Its front is written here from Qdrant's OpenAPI: what comes in must be what the models allow that the
client's authors generate from it, and no field more. Behind it is the embedded engine, by Qdrant, which does the work and checks
sizes of vectors, names of vectors and filters as the server's does.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import qdrant_edge as qdrant
from pydantic import TypeAdapter, ValidationError
from qdrant_client import models

VERSION = "1.20.0"


class Refused(Exception):
    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class Double:
    """A server that listens on loopback.

    Attributes:
        url: Where.
        api_key: The key that it asks for, if any.
        version: What it says it runs.
        answer: If set, called with method and path; what it returns, a status, is the whole answer.
        requests: Method and path of each request.
    """

    def __init__(self, directory, *, api_key=None):
        self._directory = directory
        self._collections = {}
        self._made = {}
        self._lock = threading.Lock()
        self.api_key = api_key
        self.version = VERSION
        self.answer = None
        self.requests = []
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def _handle(self):
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                status, reply = double.handle(self.command, self.path, body, self.headers.get("api-key"))
                if status is None:
                    self.close_connection = True
                    return
                data = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                if status == 429:
                    self.send_header("retry-after", "7")
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_DELETE = _handle

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request, client_address):
                """Clients that go in the middle of a request are what some tests are about."""
                if not isinstance(sys.exc_info()[1], ConnectionError):
                    super().handle_error(request, client_address)

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for shard in self._collections.values():
            shard.close()
        self._collections.clear()

    def empty(self):
        """Removes all points, and leaves the collections."""
        for shard in self._collections.values():
            shard.update(qdrant.UpdateOperation.delete_points_by_filter(qdrant.Filter(must=[])))

    def drop(self, name):
        """Removes a collection behind everybody's back."""
        self.handle("DELETE", f"/collections/{name}", b"", self.api_key)

    def handle(self, method, target, body, key):
        path = urlsplit(target).path.rstrip("/") or "/"
        self.requests.append((method, path))
        if self.answer is not None:
            status = self.answer(method, path)
            if status != 200:
                return status, {"status": {"error": "on demand"}, "time": 0.0}
        try:
            if self.api_key is not None and key != self.api_key:
                raise Refused(403, "Forbidden: invalid API key")
            with self._lock:
                result = self._route(method, path, parse_qs(urlsplit(target).query), body)
        except Refused as error:
            return error.status, {"status": {"error": str(error)}, "time": 0.0}
        except (ValidationError, ValueError) as error:
            return 400, {"status": {"error": f"Format error in JSON body: {error}"}, "time": 0.0}
        if path == "/":
            return 200, result
        return 200, {"result": result, "status": "ok", "time": 0.0}

    def _route(self, method, path, query, body):
        match method, path.strip("/").split("/"):
            case "GET", [""]:
                return {"title": "qdrant - vector search engine", "version": self.version}
            case "GET", ["collections", name, "exists"]:
                return {"exists": name in self._collections}
            case "GET", ["collections", name]:
                return self._info(self._shard(name))
            case "PUT", ["collections", name]:
                return self._create(name, models.CreateCollection.model_validate_json(body))
            case "DELETE", ["collections", name]:
                self._shard(name).close()
                del self._collections[name]
                shutil.rmtree(self._directory / name)
                return True
            case "PUT", ["collections", name, "index"]:
                return self._index(self._shard(name), query, models.CreateFieldIndex.model_validate_json(body))
            case "PUT", ["collections", name, "points"]:
                return self._upsert(self._shard(name), query, models.PointsList.model_validate_json(body))
            case "POST", ["collections", name, "points"]:
                return self._retrieve(self._shard(name), models.PointRequest.model_validate_json(body))
            case "POST", ["collections", name, "points", "batch"]:
                return self._replace(self._shard(name), query, models.UpdateOperations.model_validate_json(body))
            case "POST", ["collections", name, "points", "delete"]:
                return self._delete(self._shard(name), query, models.FilterSelector.model_validate_json(body))
            case "POST", ["collections", name, "points", "count"]:
                return self._count(self._shard(name), models.CountRequest.model_validate_json(body))
            case "POST", ["collections", name, "points", "scroll"]:
                return self._scroll(self._shard(name), models.ScrollRequest.model_validate_json(body))
            case "POST", ["collections", name, "points", "query", "batch"]:
                return self._query(self._shard(name), models.QueryRequestBatch.model_validate_json(body))
        raise Refused(404, f"no such call: {method} {path}")

    def _shard(self, name):
        if name not in self._collections:
            raise Refused(404, f"Not found: Collection `{name}` doesn't exist!")
        return self._collections[name]

    def _create(self, name, request):
        if name in self._collections:
            raise Refused(409, f"Wrong input: Collection `{name}` already exists!")
        dense = {
            key: qdrant.EdgeVectorParams(value.size, {"Cosine": qdrant.Distance.Cosine}[value.distance.value])
            for key, value in (request.vectors or {}).items()
        }
        sparse = {
            key: qdrant.EdgeSparseVectorParams(modifier=qdrant.Modifier.Idf if value.modifier == models.Modifier.IDF else None)
            for key, value in (request.sparse_vectors or {}).items()
        }
        (self._directory / name).mkdir(parents=True)
        config = qdrant.EdgeConfig(vectors=dense or None, sparse_vectors=sparse)
        self._collections[name] = qdrant.EdgeShard.create(str(self._directory / name), config)
        self._made[id(self._collections[name])] = request
        return True

    def _info(self, shard):
        request = self._made[id(shard)]
        schema = {
            field: {"data_type": str(info.data_type).rpartition(".")[2].lower(), "points": info.points}
            for field, info in shard.info().payload_schema.items()
        }
        return {
            "status": "green",
            "optimizer_status": "ok",
            "points_count": shard.info().points_count,
            "segments_count": shard.info().segments_count,
            "payload_schema": schema,
            "config": {
                "params": {
                    "vectors": {key: json.loads(value.model_dump_json()) for key, value in (request.vectors or {}).items()},
                    "sparse_vectors": {
                        key: json.loads(value.model_dump_json()) for key, value in (request.sparse_vectors or {}).items()
                    },
                },
                "hnsw_config": {"m": 0, "ef_construct": 100, "full_scan_threshold": 10000},
                "optimizer_config": {
                    "deleted_threshold": 0.2,
                    "vacuum_min_vector_number": 1000,
                    "default_segment_number": 0,
                    "flush_interval_sec": 5,
                },
            },
        }

    def _index(self, shard, query, request):
        self._waits(query)
        schema = request.field_schema
        if isinstance(schema, models.KeywordIndexParams):
            params = qdrant.KeywordIndexParams(is_tenant=schema.is_tenant)
        else:
            params = {
                models.PayloadSchemaType.KEYWORD: qdrant.PayloadSchemaType.Keyword,
                models.PayloadSchemaType.INTEGER: qdrant.PayloadSchemaType.Integer,
            }[schema]
        return self._update(shard, qdrant.UpdateOperation.create_field_index(request.field_name, params))

    def _upsert(self, shard, query, request):
        self._waits(query)
        return self._update(shard, qdrant.UpdateOperation.upsert_points(self._points(request)))

    def _replace(self, shard, query, request):
        self._waits(query)
        results = []
        for operation in request.operations:
            asked = operation.upsert
            assert asked.update_mode is models.UpdateMode.UPDATE_ONLY
            change = qdrant.UpdateOperation.upsert_points(
                self._points(asked), to_filter(asked.update_filter), qdrant.UpdateMode.UpdateOnly
            )
            results.append(self._update(shard, change))
        return results

    def _points(self, request):
        points = []
        for point in request.points:
            TypeAdapter(models.ExtendedPointId).validate_python(point.id)
            vectors = {
                name: qdrant.SparseVector(vector.indices, vector.values) if isinstance(vector, models.SparseVector) else vector
                for name, vector in point.vector.items()
            }
            points.append(qdrant.Point(point.id, vectors, point.payload))
        return points

    def _delete(self, shard, query, request):
        self._waits(query)
        return self._update(shard, qdrant.UpdateOperation.delete_points_by_filter(to_filter(request.filter)))

    def _retrieve(self, shard, request):
        records = shard.retrieve([str(id) for id in request.ids], request.with_payload, False)
        return [{"id": str(record.id), "payload": record.payload} for record in records]

    def _count(self, shard, request):
        assert request.exact
        return {"count": shard.count(qdrant.CountRequest(filter=to_filter(request.filter), exact=True))}

    def _scroll(self, shard, request):
        if request.order_by is not None and request.order_by.key not in shard.info().payload_schema:
            raise Refused(400, f"Bad request: No range index for `order_by` key: `{request.order_by.key}`")
        direction = {models.Direction.DESC: qdrant.Direction.Desc, models.Direction.ASC: qdrant.Direction.Asc}
        records, _ = self._ask(
            lambda: shard.scroll(
                qdrant.ScrollRequest(
                    limit=request.limit,
                    filter=to_filter(request.filter),
                    with_payload=request.with_payload,
                    order_by=qdrant.OrderBy(request.order_by.key, direction[request.order_by.direction]),
                )
            )
        )
        return {"points": [{"id": str(record.id), "payload": record.payload} for record in records], "next_page_offset": None}

    def _query(self, shard, request):
        requests = [self._request(shard, search) for search in request.searches]
        found = self._ask(lambda: shard.query_batch(qdrant.QueryBatchRequest(requests)))
        return [{"points": [self._scored(point) for point in points]} for points in found]

    def _request(self, shard, search):
        vector = search.query.nearest
        if isinstance(vector, models.SparseVector):
            vector = qdrant.SparseVector(vector.indices, vector.values)
        corpus = search.params.idf.corpus if search.params is not None and search.params.idf is not None else None
        return qdrant.QueryRequest(
            limit=search.limit,
            query=qdrant.Query.Nearest(vector, using=search.using),
            filter=to_filter(search.filter),
            params=qdrant.SearchParams(
                exact=bool(search.params.exact),
                idf=None if corpus is None else qdrant.IdfParams(to_filter(corpus)),
            ),
            with_vector=search.with_vector,
            with_payload=search.with_payload,
        )

    def _scored(self, point):
        scored = {"id": str(point.id), "version": point.version, "score": point.score}
        if point.vector:
            scored["vector"] = {
                name: {"indices": vector.indices, "values": vector.values} for name, vector in point.vector.items()
            }
        return scored

    def _update(self, shard, operation):
        self._ask(lambda: shard.update(operation))
        return {"operation_id": 1, "status": "completed"}

    def _ask(self, call):
        try:
            return call()
        except Exception as error:
            raise Refused(400, f"Wrong input: {error}") from error

    def _waits(self, query):
        if query.get("wait") != ["true"]:
            raise Refused(400, "the double answers only those who wait: a test that does not would see its write or not")


def to_filter(given):
    if given is None:
        return None
    return qdrant.Filter(must=to_conditions(given.must), must_not=to_conditions(given.must_not))


def to_conditions(given):
    if given is None:
        return None
    conditions = []
    for condition in given if isinstance(given, list) else [given]:
        if isinstance(condition, models.HasIdCondition):
            conditions.append(qdrant.HasIdCondition({str(id) for id in condition.has_id}))
        elif condition.range is not None:
            span = condition.range
            conditions.append(
                qdrant.FieldCondition(
                    condition.key, range=qdrant.RangeFloat(gte=span.gte, gt=span.gt, lte=span.lte, lt=span.lt)
                )
            )
        else:
            conditions.append(qdrant.FieldCondition(condition.key, match=qdrant.MatchValue(condition.match.value)))
    return conditions


@contextmanager
def running(directory, **options):
    double = Double(directory, **options)
    try:
        yield double
    finally:
        double.close()
