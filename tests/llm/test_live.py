"""An agent that a model drives takes part in a live run, and knows nothing of it."""

from sojourn import Event, LiveRequestQueue, LlmAgent, Runner, Transcription, agent
from sojourn.testing.loop import for_seeds
from sojourn.testing.models import ScriptedModel


@for_seeds(5)
async def test_each_message_is_answered_by_the_model():
    model = ScriptedModel("Hello Ann.", "You are Ann.")
    helper = LlmAgent(name="helper", model=model)

    @agent
    async def chat(ctx):
        async for request in ctx.live:
            if request.content is not None:
                await ctx.live.until_interrupted(ctx.run_agent(helper))

    runner = Runner(app_name="app", agent=chat)
    queue = LiveRequestQueue()
    queue.send_content("I am Ann.")
    said = []
    async for item in runner.run_live("ann", "s", queue):
        if not item.partial and item.text:
            said.append((item.author, item.text))
        if item.turn_complete and len(model.requests) == 1:
            queue.send_content("Who am I?")
        elif item.turn_complete:
            queue.close()
    assert said == [("user", "I am Ann."), ("helper", "Hello Ann."), ("user", "Who am I?"), ("helper", "You are Ann.")]
    assert "I am Ann." in model.requests[0].text
    assert all(text in model.requests[1].text for text in ("I am Ann.", "Hello Ann.", "Who am I?"))
    assert "Go on." not in model.requests[0].text + model.requests[1].text


@for_seeds(5)
async def test_what_was_spoken_is_shown_to_the_model_of_a_later_run():
    model = ScriptedModel("Fine.")
    helper = LlmAgent(name="helper", model=model)

    @agent(sub_agents=[helper])
    async def desk(ctx):
        if ctx.user_content.text:
            ctx.transfer_to("helper")
            return
        yield Event(input_transcription=Transcription(text="spoken question", finished=True))
        yield Event(output_transcription=Transcription(text="spoken answer", finished=True), turn_complete=True)

    runner = Runner(app_name="app", agent=desk)
    async for _ in runner.run_live("ann", "s", LiveRequestQueue()):
        pass
    assert await (await runner.start("ann", "s", "written question")).result() == "Fine."
    shown = model.requests[0].text
    assert shown.index("spoken question") < shown.index("spoken answer") < shown.index("written question")
