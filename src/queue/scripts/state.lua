-- Where a job is (wire format 6.20). Changes nothing.
--
-- KEYS  1-11 the queue, 12 job
-- ARGV  1-3 header, 4 id
-- answers {1} completed, {2} failed, {3} delayed, {4} active, {5} waiting, {6} paused, {0} stuck: in none of them
local q = open_queue(1, ARGV[1], ARGV[2])
local wrong = mistyped(q)
if wrong then
  return {WRONG_TYPE, wrong}
end
if not is_hash(KEYS[12]) then
  return {MISSING}
end
for code, set in ipairs({q.completed, q.failed, q.delayed}) do
  if redis.call('ZSCORE', set, ARGV[4]) then
    return {code}
  end
end
for code, list in ipairs({q.active, q.wait, q.paused}) do
  if redis.call('LPOS', list, ARGV[4]) then
    return {code + 3}
  end
end
return {0}
