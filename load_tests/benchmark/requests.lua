-- Requests for wrk. Environment: BENCH_PREFIX and BENCH_SERIES (names of series: prefix and a number below BENCH_SERIES), or
-- BENCH_PATH and BENCH_BODY (one path, and a file with its body). Prints one line of JSON at the end.
local prefix, series = os.getenv("BENCH_PREFIX"), tonumber(os.getenv("BENCH_SERIES") or "1")
local path, file = os.getenv("BENCH_PATH"), os.getenv("BENCH_BODY")
local headers = {["Content-Type"] = "application/json"}
local count, fixed = 0, nil

function init()
  math.randomseed(os.time())
  if path then
    local stream = assert(io.open(file, "rb"))
    fixed = wrk.format("POST", path, headers, stream:read("*a"))
    stream:close()
  end
end

function request()
  if fixed then return fixed end
  count = count + 1
  local body = string.format('{"timestamp": %d, "value": %.4f}', 1700000000 + count, math.random() * 2 - 1)
  return wrk.format("POST", "/predict/" .. prefix .. math.random(0, series - 1), headers, body)
end

function done(summary, latency)
  local errors = summary.errors
  print(string.format(
    '{"requests": %d, "seconds": %.6f, "errors": %d, "p50": %.3f, "p95": %.3f, "p99": %.3f}',
    summary.requests, summary.duration / 1e6,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3))
end
