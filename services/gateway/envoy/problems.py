"""What the second door answers in an error's stead: problem details (RFC 9457), made by a script in Envoy.

A policy process or a service that refuses a call has written the body already, into a header. What
Envoy itself refuses gets a fixed text for each status. The script guards nothing: if it failed, a
client would see an error in another form. It repeats nothing that a client sent.
"""

from __future__ import annotations

import json

from services.common.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    SealcombError,
    Unauthenticated,
    Unavailable,
)
from services.common.rpc.problem import PROBLEM_HEADER, problem_text, retry_after
from services.gateway.envoy.refusals import REFUSALS

_MEDIA_TYPE = "application/problem+json"
_METADATA = "sealcomb.problem"
_INTERNAL = SealcombError("an internal error; report the request id")
_UNFIT = InvalidArgument(
    "the request does not fit the method: see /openapi.json for its fields, their types and their names",
    reason="REQUEST_UNFIT",
)
# What Envoy says itself, by status; the first of each class serves the others of it.
_OWN: dict[int, SealcombError] = {
    400: _UNFIT,
    401: Unauthenticated("the call could not be authenticated"),
    403: PermissionDenied("the call is not allowed"),
    404: NotFound("no such path or method; see /openapi.json", reason="NO_SUCH_METHOD"),
    408: DeadlineExceeded("the request did not arrive in time; try again"),
    411: InvalidArgument(
        "say the body's length in content-length; chunks are not taken", reason="LENGTH_REQUIRED"
    ),
    413: ResourceExhausted("the request is too large; send less at once", reason="MESSAGE_TOO_LARGE"),
    429: ResourceExhausted("too many calls; try again", retry_after_s=1.0),
    500: _INTERNAL,
    501: NotFound("no such path or method; see /openapi.json", reason="NO_SUCH_METHOD"),
    503: Unavailable("a part of the service is not reachable; try again", retry_after_s=1.0),
    504: DeadlineExceeded("the call did not end in time; try again"),
    **REFUSALS,
}


def _table() -> str:
    entries = []
    for status, error in _OWN.items():
        # The id comes last, so that it can be put in without a JSON library.
        open_text = problem_text(status, error, "").removesuffix("}") + ',"request_id":"'
        wait = json.dumps(retry_after(error)) if error.retry_after_s is not None else "nil"
        entries.append(f"  [{status}] = {{ text = {json.dumps(open_text)}, wait = {wait} }},")
    return "\n".join(entries)


PROBLEM_SCRIPT = f"""
local OWN = {{
{_table()}
}}
-- What gRPC-Web calls a status that Envoy gave without a word of gRPC.
local CODES = {{
  [400] = 3, [401] = 16, [403] = 7, [404] = 12, [408] = 4, [413] = 8, [415] = 12,
  [429] = 8, [431] = 8, [503] = 14, [504] = 4
}}
local GRPC = {{
  "grpc-accept-encoding", "grpc-message", "grpc-status", "grpc-status-details-bin", "{PROBLEM_HEADER}"
}}

local function kept(handle)
  return handle:streamInfo():dynamicMetadata():get("{_METADATA}") or {{}}
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local metadata = handle:streamInfo():dynamicMetadata()
  metadata:set("{_METADATA}", "id", headers:get("x-request-id") or "")
  local kind = headers:get("content-type") or ""
  if string.find(kind, "application/grpc-web", 1, true) == 1 then
    metadata:set("{_METADATA}", "form", "web")
  elseif string.find(kind, "application/grpc", 1, true) == 1 then
    metadata:set("{_METADATA}", "form", "grpc")
  elseif headers:get(":method") == "OPTIONS" then
    metadata:set("{_METADATA}", "form", "preflight")
  elseif headers:get(":method") == "HEAD" then
    metadata:set("{_METADATA}", "form", "head")
  end
end

-- A refusal of gRPC-Web is an answer without messages, not an error of HTTP.
local function as_grpc_web(handle, headers, status)
  local code = headers:get("grpc-status")
  if code == nil or code == "2" then
    headers:replace("grpc-status", tostring(CODES[status] or 2))
  end
  headers:replace(":status", "200")
  headers:replace("content-type", "application/grpc-web+proto")
  local body = handle:body()
  if body ~= nil then
    body:setBytes("")
  end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local status = tonumber(headers:get(":status"))
  local call = kept(handle)
  if call["form"] == "grpc" then
    return
  end
  if call["form"] == "web" then
    if status ~= 200 then
      as_grpc_web(handle, headers, status)
    end
    return
  end
  if call["form"] == "preflight" and status == 200 and headers:get("access-control-allow-origin") == nil then
    -- A browser has its answer in the header's absence; this is for people.
    status = 403
    headers:replace(":status", "403")
  end
  local problem = headers:get("{PROBLEM_HEADER}")
  for _, name in ipairs(GRPC) do
    headers:remove(name)
  end
  -- An answer to HEAD has no body: what was written behind it would be read as the next answer.
  if status < 400 or call["form"] == "head" then
    return
  end
  if problem == nil then
    local own = OWN[status] or (status < 500 and OWN[400] or OWN[500])
    problem = own.text .. (call["id"] or "") .. '"}}'
    if own.wait ~= nil and headers:get("retry-after") == nil then
      headers:add("retry-after", own.wait)
    end
  end
  if status == 401 then
    headers:add("www-authenticate", "Bearer")
  end
  headers:replace("content-type", "{_MEDIA_TYPE}")
  handle:body(true):setBytes(problem)
end
"""
