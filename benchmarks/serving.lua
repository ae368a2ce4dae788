-- wrk's requests: the body in the file $BODY, whose JSON has $HEADER bytes before the tensors, or is all there is if
-- that is not set; the results on one line.
local file = assert(io.open(os.getenv("BODY"), "rb"))
wrk.method = "POST"
wrk.body = file:read("*a")
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Inference-Header-Content-Length"] = os.getenv("HEADER")
file:close()

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format("RESULT %d %d %f %f %d\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.timeout + errors.status))
end
