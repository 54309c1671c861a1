-- Reads jobs. Changes nothing.
--
-- KEYS  1-6 the queue, then the jobs
-- answers {0, fields and values of the first, of the second ...}, empty for what is no job
local answer = {0}
for i = 7, #KEYS do
  answer[i - 5] = is_hash(KEYS[i]) and redis.call('HGETALL', KEYS[i]) or {}
end
return answer
