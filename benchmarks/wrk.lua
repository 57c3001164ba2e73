-- Sends the requests in a file, over and over: on each line a path, a tab and the cookies. Prints one line of JSON.
local requests, latest = {}, 0

function init(arguments)
  local agent = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
  for line in io.lines(arguments[1]) do
    local path, cookies = line:match("^(.-)\t(.*)$")
    local headers = { ["User-Agent"] = agent, ["Cookie"] = cookies ~= "" and cookies or nil }
    table.insert(requests, wrk.format("GET", path, headers))
  end
end

function request()
  latest = latest % #requests + 1
  return requests[latest]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %f, "p50": %f, "p99": %f, "failed": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.timeout + errors.status
  ))
end
