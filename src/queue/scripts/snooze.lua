-- Puts a job off; the attempt does not count.
--
-- KEYS  1-11 the queue, 12 job, 13 lock
-- ARGV  1-3 header, 4 id, 5 token, 6 due time, 7 low bits
-- before: job active, locked by the token     after: job in delayed, no lock
-- answers {0}
local q = open_queue(1, ARGV[1], ARGV[2])
local wrong = mistyped(q)
if wrong then
  return {WRONG_TYPE, wrong}
end
local code = ownership(KEYS[12], KEYS[13], ARGV[5])
if code < 0 then
  return {code}
end
code = leave_active(q, ARGV[4], KEYS[13])
if code < 0 then
  return {code}
end
local score = delayed_score(tonumber(ARGV[6]), tonumber(ARGV[7]))
redis.call('ZADD', q.delayed, score, ARGV[4])
announce_delayed(q, tonumber(score) / 4096)
return {0}
