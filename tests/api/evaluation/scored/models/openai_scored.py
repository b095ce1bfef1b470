"""lmms-eval's client of OpenAI's API, and the log-likelihoods that it lacks, by vLLM's field `prompt_logprobs`."""

from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.registry import register_model
from lmms_eval.models.model_utils.media_encoder import encode_image_to_base64
from lmms_eval.models.simple.openai import OpenAICompatible


@register_model("openai_scored")
class OpenAIScored(OpenAICompatible):
    """Scores a choice as the assistant's message that follows the question and its pictures."""

    _asked, _before = None, 0
    """The question that was asked last, and its number of tokens, pictures included."""

    def loglikelihood(self, requests):
        """Return for each request the mean loss of its tokens, as lmms-eval's other models do, and whether all of
        them are the likeliest.

        lmms-eval 0.7.3 turns such a pair into its text (api/instance.py:71), which no task can read; the wrapper of
        generated texts goes through as it is."""
        return [GenerationResult(text=self._score(*request.args)) for request in requests]

    def _score(self, context, target, doc_to_visual, doc_id, task, split):
        doc = self.task_dict[task][split][doc_id]
        urls = [f"data:image/png;base64,{encode_image_to_base64(picture)}" for picture in doc_to_visual(doc)]
        pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        question = {"role": "user", "content": [*pictures, {"type": "text", "text": context}]}
        answer = {"role": "assistant", "content": target if isinstance(target, str) else target(doc)}
        if self._asked != (task, split, doc_id):  # the choices of a question come one after the other
            self._asked, self._before = (task, split, doc_id), self._run([question]).usage.prompt_tokens
        whole = self._run(
            [question, answer], prompt_logprobs=0, continue_final_message=True, add_generation_prompt=False
        )
        scores = [score for entry in whole.prompt_logprobs[self._before :] for score in entry.values()]
        return -sum(s["logprob"] for s in scores) / len(scores), all(s["rank"] == 1 for s in scores)

    def _run(self, messages, **settings):
        return self.client.chat.completions.create(
            model=self.model_version, messages=messages, max_tokens=1, temperature=0, extra_body=settings
        )
