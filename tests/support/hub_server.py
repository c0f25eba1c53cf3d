"""The hub as a small server: repositories whose files are all "{}"."""

import http.server
import json
from urllib.parse import unquote, urlparse

from hub_files import COMMIT, REPOSITORIES


class Hub(http.server.BaseHTTPRequestHandler):
    """The three questions of a download, and the answers to what must not be had."""

    def do_GET(self):
        path = unquote(urlparse(self.path).path)
        refusals = {
            "owner/none": (401, "RepoNotFound"),
            "owner/gated": (403, "GatedRepo"),
            "owner/broken": (500, ""),
            "/revision/nowhere": (404, "RevisionNotFound"),
        }
        for part, (status, code) in refusals.items():
            if part in path:
                return self.answer(b"", status, {"X-Error-Code": code})
        for name, files in REPOSITORIES.items():
            if path.startswith(f"/api/models/{name}/revision/"):
                siblings = [{"rfilename": file} for file in sorted(files)]
                info = {"id": name, "sha": COMMIT, "siblings": siblings}
                return self.answer(json.dumps(info).encode())
            if path.startswith(f"/api/models/{name}/tree/"):
                entry = {"type": "file", "size": 2, "oid": "a" * 40}
                tree = [{**entry, "path": file} for file in sorted(files)]
                return self.answer(json.dumps(tree).encode())
        if "sd_xl" in path or ("v1-5" in path and self.command == "GET"):
            return self.answer(b"", 403)
        return self.answer(b"{}", headers={"ETag": '"etag"', "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def answer(self, content, status=200, headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *args):
        pass
