-- Reads jobs. Changes nothing.
--
-- KEYS  1-11 the queue, then the jobs
-- answers {0, fields and values of the first, of the second ...}, empty for what is no job
local answer = {0}
for i = 12, #KEYS do
  answer[i - 10] = is_hash(KEYS[i]) and redis.call('HGETALL', KEYS[i]) or {}
end
return answer
